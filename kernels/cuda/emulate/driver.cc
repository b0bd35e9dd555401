// A libcuda.so.1 without a GPU: the few driver functions that src/cuda calls, with the kernels compiled
// for the host. It lets every line of the CUDA path but the GPU's own arithmetic run in tests:
//
//     kernels/cuda/emulate/build OUT && LD_LIBRARY_PATH=OUT cargo test --features cuda --test cuda
//
// It is stricter than a GPU where that shows mistakes:
//
// 1. Work of a stream waits until something waits for it, as late as a GPU may take it up; copies from pinned memory
//    of the host read it then.
// 2. Device memory is full of NaN when it is allocated, and ends where the process may not read.
// 3. Threads and blocks run in ascending order in one launch and in descending order in the next, so
//    that a missing barrier or a block that reads what another writes gives different results.
// 4. An address that is not aligned for what is read there, an index outside of an array in shared
//    memory, and a division by zero end the program.
//
// Variables of the environment make it fail as drivers do:
//
//     BLT_EMULATED_DEVICES      how many there are (1)
//     BLT_EMULATED_VERSION      CUDA version of the driver, 1000 * major + 10 * minor (12000)
//     BLT_EMULATED_CAPABILITY   compute capability, 10 * major + minor (80)
//     BLT_EMULATED_MEMORY       bytes of the device (4 GiB)
//     BLT_EMULATED_ALLOCATION   the allocation, counted from 1, that finds no memory
//     BLT_EMULATED_IMAGE        the error that loading the kernels gives, a number of CUresult
//     BLT_EMULATED_LOST         the wait for a stream, counted from 1, from which on the device is lost
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "../blt.cu"

thread_local Place threadIdx, blockIdx, blockDim, gridDim;
thread_local Exchange *exchange;

namespace {

// --- Threads of a block -----------------------------------------------------------------------------

enum Waits : unsigned char { NOT, FOR_WARP, FOR_BLOCK, DONE };

// Stacks lie so that their ends, the parts in use, fall into different sets of the cache.
constexpr size_t STACK = 32 << 10, STACK_STRIDE = STACK + 320;

// The place where a fiber or the scheduler goes on; for __builtin_setjmp, which saves little.
using Jump = void *[5];

// What runs blocks: one per thread of the host.
struct Host {
    std::unique_ptr<char[]> stacks{new char[1024 * STACK_STRIDE]};
    bool begun[1024];
    Jump fibers[1024];
    Waits waits[1024];
    Exchange exchange;
    Jump scheduler;
    unsigned running, warp_first, warp_end;
    bool descending;
    const std::function<void()> *kernel;
};
thread_local Host *host;

// __builtin_longjmp must not be in the function that called __builtin_setjmp.
__attribute__((noinline, noreturn)) void jump(void **to) { __builtin_longjmp(to, 1); }

void leave(Waits waits);

void body() {
    for (;;) {
        (*host->kernel)();
        leave(DONE);
    }
}

// Goes on with the next thread of the warp that has something to do, or the scheduler if there is none.
__attribute__((noinline, noreturn)) void go_on() {
    Host &h = *host;
    unsigned t = h.running;
    do {
        t = h.descending ? t - 1 : t + 1;
        if (t - h.warp_first >= h.warp_end - h.warp_first) jump(h.scheduler);
    } while (h.waits[t] != NOT);
    h.running = t;
    threadIdx = {t, 0, 0};
    if (h.begun[t]) jump(h.fibers[t]);
    h.begun[t] = true;
    ucontext_t entry;
    getcontext(&entry);
    entry.uc_stack.ss_sp = h.stacks.get() + t * STACK_STRIDE;
    entry.uc_stack.ss_size = STACK;
    makecontext(&entry, body, 0);
    setcontext(&entry);
    abort();
}

// Opaque to the compiler: threadIdx is another's when it returns to the place it was called from.
__attribute__((noipa)) void leave(Waits waits) {
    host->waits[host->running] = waits;
    if (__builtin_setjmp(host->fibers[host->running]) == 0) go_on();
}

// Lets each thread of the warp run until it waits.
__attribute__((noipa)) void run_warp_once(unsigned first, unsigned n) {
    Host &h = *host;
    h.warp_first = first, h.warp_end = first + n;
    h.running = h.descending ? first + n : first - 1;
    if (__builtin_setjmp(h.scheduler) == 0) go_on();
}

// Runs a warp until all its threads are done or wait for the block.
void run_warp(unsigned first, unsigned n) {
    Waits *waits = host->waits + first;
    for (;;) {
        run_warp_once(first, n);
        unsigned for_warp = std::count(waits, waits + n, FOR_WARP);
        if (for_warp == 0) return;
        if (for_warp != n) {
            fprintf(stderr, "emulated CUDA: %u of %u threads of a warp wait for it\n", for_warp, n);
            abort();
        }
        std::fill(waits, waits + n, NOT);
    }
}

void run_block() {
    unsigned n = blockDim.x, warps = (n + WARP - 1) / WARP;
    Waits *waits = host->waits;
    std::fill(waits, waits + n, NOT);
    for (;;) {
        for (unsigned i = 0; i < warps; i++) {
            unsigned first = (host->descending ? warps - 1 - i : i) * WARP;
            run_warp(first, std::min(WARP, n - first));
        }
        if (std::count(waits, waits + n, DONE) == n) return;
        std::replace(waits, waits + n, FOR_BLOCK, NOT);
    }
}

void run_grid(const std::function<void()> &kernel, Place grid, Place block) {
    thread_local std::unique_ptr<Host> of_thread;
    if (!of_thread) of_thread = std::make_unique<Host>();
    host = of_thread.get(), exchange = &host->exchange;
    host->descending = !host->descending;
    host->kernel = &kernel;
    gridDim = grid, blockDim = block;
    unsigned n = grid.x * grid.y * grid.z;
    for (unsigned i = 0; i < n; i++) {
        unsigned at = host->descending ? n - 1 - i : i;
        blockIdx = {at % grid.x, at / grid.x % grid.y, at / grid.x / grid.y};
        run_block();
    }
}

// --- Kernels ----------------------------------------------------------------------------------------

struct Function {
    // Copies the arguments; the result runs one thread.
    std::function<std::function<void()>(void **)> bind;
};

template <class... A, size_t... I>
std::function<void()> with_arguments(void (*kernel)(A...), void **p, std::index_sequence<I...>) {
    return [kernel, values = std::make_tuple(*(A *)p[I]...)] { std::apply(kernel, values); };
}
template <class... A>
Function function(void (*kernel)(A...)) {
    return {[kernel](void **p) { return with_arguments(kernel, p, std::index_sequence_for<A...>()); }};
}

#define ENTRY(name) {#name, function(name)}
std::map<std::string, Function> functions = {
    ENTRY(attention), ENTRY(rope_append), ENTRY(rms_norm), ENTRY(swiglu), ENTRY(embed), ENTRY(sample),
    ENTRY(scatter), ENTRY(gather), ENTRY(max_pool), ENTRY(entropy), ENTRY(add_slices),
    ENTRY(matvec8_f32), ENTRY(matvec32_f32), ENTRY(matmul_f32), ENTRY(matvec8_f16),
    ENTRY(matvec32_f16), ENTRY(matmul_f16), ENTRY(matvec8_bf16), ENTRY(matvec32_bf16), ENTRY(matmul_bf16),
    ENTRY(matvec8_q8_0), ENTRY(matvec32_q8_0), ENTRY(matmul_q8_0), ENTRY(matvec8_q4_0), ENTRY(matvec32_q4_0),
    ENTRY(matmul_q4_0), ENTRY(matvec8_q4_k), ENTRY(matvec32_q4_k), ENTRY(matmul_q4_k), ENTRY(matvec8_q6_k),
    ENTRY(matvec32_q6_k), ENTRY(matmul_q6_k),
};

// --- The device -------------------------------------------------------------------------------------

enum {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    NO_BINARY = 209,
    UNSUPPORTED_PTX = 222,
    NOT_FOUND = 500,
    ILLEGAL_ADDRESS = 700,
    LAUNCH_FAILED = 719,
    CAPTURE_UNSUPPORTED = 900,
};

// A number from the environment.
size_t setting(const char *name, size_t otherwise) {
    const char *text = getenv(name);
    return text ? strtoull(text, nullptr, 10) : otherwise;
}
size_t capacity() { return setting("BLT_EMULATED_MEMORY", (size_t)4 << 30); }

std::atomic<bool> is_lost;
std::atomic<size_t> waits_begun;

// Allocations: address and bytes.
std::mutex lock;
std::map<size_t, size_t> allocated;
size_t in_use, allocations;
// Pinned memory of the host, likewise.
std::map<size_t, size_t> pinned;

size_t page_ceil(size_t n) { return (n + 4095) / 4096 * 4096; }
// Bytes mapped for an allocation, and where they begin: it ends where the last page does, but for the
// 16 bytes that vectors of floats are aligned to.
size_t mapped(size_t n) { return page_ceil(n) + 4096; }
size_t mapping(size_t address) { return address / 4096 * 4096; }

// Whether these bytes lie in one allocation.
bool is_in(const std::map<size_t, size_t> &allocated, size_t at, size_t n) {
    std::lock_guard<std::mutex> guard(lock);
    auto after = allocated.upper_bound(at);
    return after != allocated.begin() && (--after, at + n <= after->first + after->second);
}

// Whether these bytes of the device lie in one allocation; said on standard error if not.
bool inside(size_t at, size_t n) {
    bool found = is_in(allocated, at, n);
    if (!found) fprintf(stderr, "emulated CUDA: %zu bytes outside of allocated memory\n", n);
    return found;
}

using Work = std::vector<std::function<int()>>;

int run(const Work &work) {
    for (auto &one : work)
        if (int error = one()) return error;
    return SUCCESS;
}

struct Stream {
    std::mutex lock;
    Work work;
    // Becomes a graph; only the thread that records it may add to it.
    std::unique_ptr<Work> captured;
    std::thread::id recorder;

    int add(std::function<int()> one) {
        if (is_lost) return LAUNCH_FAILED;
        std::lock_guard<std::mutex> guard(lock);
        if (captured && recorder != std::this_thread::get_id()) {
            fprintf(stderr, "emulated CUDA: a graph records the work of another thread\n");
            abort();
        }
        (captured ? *captured : work).push_back(std::move(one));
        return SUCCESS;
    }
    int wait() {
        std::lock_guard<std::mutex> guard(lock);
        if (captured) return CAPTURE_UNSUPPORTED;
        size_t nth = ++waits_begun;
        if (nth >= setting("BLT_EMULATED_LOST", SIZE_MAX)) is_lost = true;
        if (is_lost) return LAUNCH_FAILED;
        Work now;
        std::swap(now, work);
        return run(now);
    }
};
// Waited for by waiting for the whole stream.
struct Event {
    Stream *stream = nullptr;
    size_t recorded = 0, passed = 0;
};
using SharedEvent = std::shared_ptr<Event>;

std::mutex streams_lock;
std::map<Stream *, std::unique_ptr<Stream>> streams;

int copy(size_t to, size_t from, size_t n) {
    memcpy((void *)to, (void *)from, n);
    return SUCCESS;
}

const struct {
    int code;
    const char *name, *text;
} ERRORS[] = {
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {NO_BINARY, "CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available for execution on the device"},
    {UNSUPPORTED_PTX, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
     "the provided PTX was compiled with an unsupported toolchain."},
    {NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
     "operation not permitted when stream is capturing"},
};

}  // namespace

void __syncthreads() { leave(FOR_BLOCK); }
void warp_wait() { leave(FOR_WARP); }

extern "C" {
int cuInit(unsigned) { return setting("BLT_EMULATED_DEVICES", 1) ? SUCCESS : NO_DEVICE; }
int cuDriverGetVersion(int *version) { return *version = setting("BLT_EMULATED_VERSION", 12000), SUCCESS; }
int cuDeviceGetCount(int *n) { return *n = setting("BLT_EMULATED_DEVICES", 1), SUCCESS; }
int cuDeviceGet(int *device, int n) {
    bool found = n >= 0 && (size_t)n < setting("BLT_EMULATED_DEVICES", 1);
    return *device = n, found ? SUCCESS : INVALID_DEVICE;
}
int cuDeviceGetName(char *name, int n, int) { return snprintf(name, n, "emulation on the CPU"), SUCCESS; }
int cuDeviceTotalMem_v2(size_t *n, int) { return *n = capacity(), SUCCESS; }
int cuDeviceGetAttribute(int *value, int attribute, int) {
    int capability = setting("BLT_EMULATED_CAPABILITY", 80);
    return *value = attribute == 75 ? capability / 10 : attribute == 76 ? capability % 10 : 1, SUCCESS;
}
int cuDevicePrimaryCtxRetain(void **context, int) {
    return *context = &functions, is_lost ? LAUNCH_FAILED : SUCCESS;
}
int cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
int cuCtxSetCurrent(void *) { return SUCCESS; }
int cuModuleLoadData(void **module, const void *) {
    return *module = &functions, (int)setting("BLT_EMULATED_IMAGE", SUCCESS);
}
int cuModuleUnload(void *) { return SUCCESS; }
int cuModuleGetFunction(void **found, void *, const char *name) {
    auto at = functions.find(name);
    if (at == functions.end()) return NOT_FOUND;
    return *found = &at->second, SUCCESS;
}

int cuStreamCreate(void **stream, unsigned) {
    std::lock_guard<std::mutex> guard(streams_lock);
    auto made = std::make_unique<Stream>();
    *stream = made.get();
    streams[made.get()] = std::move(made);
    return SUCCESS;
}
int cuStreamDestroy_v2(void *stream) {
    std::lock_guard<std::mutex> guard(streams_lock);
    return streams.erase((Stream *)stream) == 1 ? SUCCESS : INVALID_VALUE;
}
int cuStreamSynchronize(void *stream) { return ((Stream *)stream)->wait(); }

int cuStreamBeginCapture_v2(void *stream, int) {
    Stream &s = *(Stream *)stream;
    std::lock_guard<std::mutex> guard(s.lock);
    if (s.captured) return CAPTURE_UNSUPPORTED;
    s.captured = std::make_unique<Work>();
    s.recorder = std::this_thread::get_id();
    return SUCCESS;
}
int cuStreamEndCapture(void *stream, void **graph) {
    Stream &s = *(Stream *)stream;
    std::lock_guard<std::mutex> guard(s.lock);
    if (!s.captured) return INVALID_VALUE;
    return *graph = s.captured.release(), SUCCESS;
}
int cuGraphDestroy(void *graph) { return delete (Work *)graph, SUCCESS; }
int cuGraphInstantiateWithFlags(void **made, void *graph, unsigned long long) {
    return *made = new std::shared_ptr<const Work>(std::make_shared<const Work>(*(Work *)graph)), SUCCESS;
}
int cuGraphExecDestroy(void *graph) { return delete (std::shared_ptr<const Work> *)graph, SUCCESS; }
int cuGraphLaunch(void *graph, void *stream) {
    return ((Stream *)stream)->add([work = *(std::shared_ptr<const Work> *)graph] { return run(*work); });
}

int cuMemAlloc_v2(size_t *address, size_t n) {
    std::lock_guard<std::mutex> guard(lock);
    if (n == 0) return INVALID_VALUE;
    if (is_lost) return LAUNCH_FAILED;
    if (in_use + n > capacity() || ++allocations == setting("BLT_EMULATED_ALLOCATION", 0)) return OUT_OF_MEMORY;
    void *pages = mmap(nullptr, mapped(n), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED) return OUT_OF_MEMORY;
    size_t end = (size_t)pages + page_ceil(n);
    mprotect((void *)end, 4096, PROT_NONE);
    *address = end - (n + 15) / 16 * 16;
    memset((void *)*address, 0xff, end - *address);
    allocated[*address] = n;
    in_use += n;
    return SUCCESS;
}
int cuMemGetInfo_v2(size_t *free, size_t *total) {
    std::lock_guard<std::mutex> guard(lock);
    return *free = capacity() - in_use, *total = capacity(), SUCCESS;
}
int cuMemFree_v2(size_t address) {
    std::vector<Stream *> all;
    {
        std::lock_guard<std::mutex> guard(streams_lock);
        for (auto &stream : streams) all.push_back(stream.first);
        // Work that has not run may use the memory.
        for (Stream *stream : all) {
            std::lock_guard<std::mutex> of_stream(stream->lock);
            Work now;
            std::swap(now, stream->work);
            if (!is_lost) run(now);
        }
    }
    std::lock_guard<std::mutex> guard(lock);
    auto at = allocated.find(address);
    if (at == allocated.end()) return INVALID_VALUE;
    munmap((void *)mapping(address), mapped(at->second));
    in_use -= at->second;
    allocated.erase(at);
    return is_lost ? LAUNCH_FAILED : SUCCESS;
}

// Where it was, nothing is once it is given back: a copy still to be made then ends the program.
int cuMemAllocHost_v2(void **address, size_t n) {
    if (n == 0) return INVALID_VALUE;
    if (is_lost) return LAUNCH_FAILED;
    *address = mmap(nullptr, page_ceil(n), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (*address == MAP_FAILED) return OUT_OF_MEMORY;
    std::lock_guard<std::mutex> guard(lock);
    return pinned[(size_t)*address] = n, SUCCESS;
}
int cuMemFreeHost(void *address) {
    std::lock_guard<std::mutex> guard(lock);
    auto at = pinned.find((size_t)address);
    if (at == pinned.end()) return INVALID_VALUE;
    munmap(address, page_ceil(at->second));
    return pinned.erase(at), SUCCESS;
}

int cuEventCreate(void **event, unsigned) { return *event = new SharedEvent(std::make_shared<Event>()), SUCCESS; }
int cuEventDestroy_v2(void *event) { return delete (SharedEvent *)event, SUCCESS; }
int cuEventRecord(void *event, void *stream) {
    SharedEvent e = *(SharedEvent *)event;
    e->stream = (Stream *)stream;
    return e->stream->add([e, nth = ++e->recorded] { return e->passed = nth, SUCCESS; });
}
int cuEventSynchronize(void *event) {
    Event &e = **(SharedEvent *)event;
    return e.passed < e.recorded ? e.stream->wait() : is_lost ? LAUNCH_FAILED : SUCCESS;
}

int cuMemcpyHtoDAsync_v2(size_t to, const void *from, size_t n, void *stream) {
    if (!inside(to, n)) return ILLEGAL_ADDRESS;
    if (is_in(pinned, (size_t)from, n))
        return ((Stream *)stream)->add([=] { return copy(to, (size_t)from, n); });
    // Pageable memory is copied at once.
    std::vector<char> bytes((const char *)from, (const char *)from + n);
    return ((Stream *)stream)->add([to, bytes = std::move(bytes)] {
        return copy(to, (size_t)bytes.data(), bytes.size());
    });
}
int cuMemcpyDtoHAsync_v2(void *to, size_t from, size_t n, void *stream) {
    if (!inside(from, n)) return ILLEGAL_ADDRESS;
    return ((Stream *)stream)->add([=] { return copy((size_t)to, from, n); });
}
int cuMemcpyDtoDAsync_v2(size_t to, size_t from, size_t n, void *stream) {
    if (!inside(to, n) || !inside(from, n)) return ILLEGAL_ADDRESS;
    return ((Stream *)stream)->add([=] { return copy(to, from, n); });
}
int cuLaunchKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void *stream, void **parameters, void **) {
    if (gx * gy * gz == 0 || gy > 65535 || gz > 65535 || by != 1 || bz != 1 || bx == 0 || bx > 1024 || shared != 0)
        return INVALID_VALUE;
    Place grid = {gx, gy, gz}, block = {bx, 1, 1};
    return ((Stream *)stream)->add([grid, block, thread = ((Function *)f)->bind(parameters)] {
        return run_grid(thread, grid, block), SUCCESS;
    });
}

int cuGetErrorName(int code, const char **name) {
    for (auto &error : ERRORS)
        if (error.code == code) return *name = error.name, SUCCESS;
    return *name = nullptr, INVALID_VALUE;
}
int cuGetErrorString(int code, const char **text) {
    for (auto &error : ERRORS)
        if (error.code == code) return *text = error.text, SUCCESS;
    return *text = nullptr, INVALID_VALUE;
}
}
