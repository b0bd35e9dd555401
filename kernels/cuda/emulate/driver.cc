// A libcuda.so.1 without a GPU: the few driver functions that src/cuda calls, with the kernels compiled
// for the host. It lets every line of the CUDA path but the GPU's own arithmetic run in tests:
//
//     kernels/cuda/emulate/build OUT && LD_LIBRARY_PATH=OUT cargo test --features cuda --test cuda
//
// Device memory is filled with NaN when it is allocated, and BLT_EMULATED_MEMORY (bytes) limits it.
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <ucontext.h>

#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "../blt.cu"

Place threadIdx, blockIdx, blockDim, gridDim;
float lanes[1024];

namespace {

enum Waits { NOT, FOR_WARP, FOR_BLOCK, DONE };

struct Fiber {
    ucontext_t entry;
    jmp_buf here;
    bool begun = false;
    Waits waits = DONE;
};

constexpr size_t STACK = 64 << 10;
Fiber fibers[1024];
unsigned running;
jmp_buf scheduler;

struct Function {
    void (*call)(void **);
};
Function *function;
void **arguments;

void leave(Waits waits) {
    fibers[running].waits = waits;
    if (_setjmp(fibers[running].here) == 0) _longjmp(scheduler, 1);
}

void body() {
    for (;;) {
        function->call(arguments);
        leave(DONE);
    }
}

void resume(unsigned t) {
    Fiber &fiber = fibers[t];
    running = t;
    threadIdx = {t, 0, 0};
    fiber.waits = NOT;
    if (_setjmp(scheduler) != 0) return;
    if (fiber.begun) _longjmp(fiber.here, 1);
    fiber.begun = true;
    getcontext(&fiber.entry);
    fiber.entry.uc_stack.ss_sp = malloc(STACK);
    fiber.entry.uc_stack.ss_size = STACK;
    makecontext(&fiber.entry, body, 0);
    setcontext(&fiber.entry);
}

// Runs a warp until all its threads are done or wait for the block.
void run_warp(unsigned first, unsigned n) {
    for (;;) {
        unsigned for_warp = 0, ended = 0;
        for (unsigned t = first; t < first + n; t++) {
            if (fibers[t].waits == NOT) resume(t);
            for_warp += fibers[t].waits == FOR_WARP;
            ended += fibers[t].waits == DONE;
        }
        if (for_warp == 0) return;
        if (for_warp + ended != n || ended != 0) {
            fprintf(stderr, "emulated CUDA: %u of %u threads of a warp wait for it\n", for_warp, n);
            abort();
        }
        for (unsigned t = first; t < first + n; t++) fibers[t].waits = NOT;
    }
}

void run_block() {
    unsigned n = blockDim.x;
    for (unsigned t = 0; t < n; t++) fibers[t].waits = NOT;
    for (;;) {
        unsigned ended = 0;
        for (unsigned t = 0; t < n; t += WARP) run_warp(t, std::min(WARP, n - t));
        for (unsigned t = 0; t < n; t++) ended += fibers[t].waits == DONE;
        if (ended == n) return;
        for (unsigned t = 0; t < n; t++)
            if (fibers[t].waits == FOR_BLOCK) fibers[t].waits = NOT;
    }
}

template <class... A, size_t... I>
void apply(void (*kernel)(A...), void **p, std::index_sequence<I...>) {
    kernel(*(A *)p[I]...);
}
template <class... A>
void apply(void (*kernel)(A...), void **p) {
    apply(kernel, p, std::index_sequence_for<A...>());
}

#define ENTRY(name) {#name, {[](void **p) { apply(name, p); }}}
std::map<std::string, Function> functions = {
    ENTRY(attention),   ENTRY(rope_append), ENTRY(append),      ENTRY(rms_norm),    ENTRY(swiglu),
    ENTRY(max_rows),    ENTRY(entropy),     ENTRY(matvec_f32),  ENTRY(matvec_f16),  ENTRY(matvec_bf16),
    ENTRY(matvec_q8_0), ENTRY(matvec_q4_0), ENTRY(matvec_q4_k), ENTRY(matvec_q6_k), ENTRY(matmul_f32),
    ENTRY(matmul_f16),  ENTRY(matmul_bf16), ENTRY(matmul_q8_0), ENTRY(matmul_q4_0), ENTRY(matmul_q4_k),
    ENTRY(matmul_q6_k),
};

std::mutex lock;
std::map<size_t, size_t> allocated;
size_t in_use;

size_t capacity() {
    const char *limit = getenv("BLT_EMULATED_MEMORY");
    return limit ? strtoull(limit, nullptr, 10) : (size_t)4 << 30;
}

// Whether these bytes lie in one allocation; said on standard error if not.
bool inside(size_t at, size_t n) {
    auto after = allocated.upper_bound(at);
    bool found = after != allocated.begin() && (--after, at + n <= after->first + after->second);
    if (!found) fprintf(stderr, "emulated CUDA: copy of %zu bytes outside of allocated memory\n", n);
    return found;
}

enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_FOUND = 500, ILLEGAL_ADDRESS = 700 };

}  // namespace

void __syncthreads() { leave(FOR_BLOCK); }
void warp_wait() { leave(FOR_WARP); }

extern "C" {
int cuInit(unsigned) { return SUCCESS; }
int cuDriverGetVersion(int *version) { return *version = 13000, SUCCESS; }
int cuDeviceGetCount(int *n) { return *n = 1, SUCCESS; }
int cuDeviceGet(int *device, int n) { return *device = n, n == 0 ? SUCCESS : INVALID_VALUE; }
int cuDeviceGetName(char *name, int n, int) { return snprintf(name, n, "emulation on the CPU"), SUCCESS; }
int cuDeviceTotalMem_v2(size_t *n, int) { return *n = capacity(), SUCCESS; }
int cuDeviceGetAttribute(int *value, int attribute, int) {
    return *value = attribute == 75 ? 8 : attribute == 76 ? 0 : 1, SUCCESS;  // compute capability 8.0
}
int cuDevicePrimaryCtxRetain(void **context, int) { return *context = &functions, SUCCESS; }
int cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
int cuCtxSetCurrent(void *) { return SUCCESS; }
int cuModuleLoadData(void **module, const void *) { return *module = &functions, SUCCESS; }
int cuModuleUnload(void *) { return SUCCESS; }
int cuModuleGetFunction(void **found, void *, const char *name) {
    auto at = functions.find(name);
    if (at == functions.end()) return NOT_FOUND;
    return *found = &at->second, SUCCESS;
}
int cuStreamCreate(void **stream, unsigned) { return *stream = &functions, SUCCESS; }
int cuStreamDestroy_v2(void *) { return SUCCESS; }
int cuStreamSynchronize(void *) { return SUCCESS; }
int cuMemAlloc_v2(size_t *address, size_t n) {
    std::lock_guard<std::mutex> guard(lock);
    if (n == 0) return INVALID_VALUE;
    if (in_use + n > capacity()) return OUT_OF_MEMORY;
    void *memory = aligned_alloc(256, (n + 255) / 256 * 256);
    if (!memory) return OUT_OF_MEMORY;
    memset(memory, 0xff, n);
    allocated[*address = (size_t)memory] = n;
    in_use += n;
    return SUCCESS;
}
int cuMemFree_v2(size_t address) {
    std::lock_guard<std::mutex> guard(lock);
    auto at = allocated.find(address);
    if (at == allocated.end()) return INVALID_VALUE;
    in_use -= at->second;
    allocated.erase(at);
    free((void *)address);
    return SUCCESS;
}
int cuMemcpyHtoDAsync_v2(size_t to, const void *from, size_t n, void *) {
    std::lock_guard<std::mutex> guard(lock);
    return inside(to, n) ? memcpy((void *)to, from, n), SUCCESS : ILLEGAL_ADDRESS;
}
int cuMemcpyDtoHAsync_v2(void *to, size_t from, size_t n, void *) {
    std::lock_guard<std::mutex> guard(lock);
    return inside(from, n) ? memcpy(to, (void *)from, n), SUCCESS : ILLEGAL_ADDRESS;
}
int cuMemcpyDtoDAsync_v2(size_t to, size_t from, size_t n, void *) {
    std::lock_guard<std::mutex> guard(lock);
    return inside(to, n) && inside(from, n) ? memcpy((void *)to, (void *)from, n), SUCCESS : ILLEGAL_ADDRESS;
}
int cuLaunchKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned,
                   void *, void **parameters, void **) {
    if (gx * gy * gz == 0 || gy > 65535 || gz != 1 || by != 1 || bz != 1 || bx == 0 || bx > 1024) return INVALID_VALUE;
    std::lock_guard<std::mutex> guard(lock);
    function = (Function *)f, arguments = parameters;
    gridDim = {gx, gy, 1}, blockDim = {bx, 1, 1};
    for (unsigned y = 0; y < gy; y++)
        for (unsigned x = 0; x < gx; x++) blockIdx = {x, y, 0}, run_block();
    return SUCCESS;
}
int cuGetErrorName(int error, const char **name) {
    return *name = error == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_UNKNOWN", SUCCESS;
}
int cuGetErrorString(int error, const char **text) {
    return *text = error == OUT_OF_MEMORY ? "out of memory" : "unknown error", SUCCESS;
}
}
