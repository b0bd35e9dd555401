// Embeddings of ids, with those of the n-grams that end there.
//
// The rows of the n-gram tables are those of src/model/hash.rs: H = sum of id * prime^i, oldest id first,
// wrapping at 64 bits, modulo the table's length.
#include "formats.cuh"

// Columns col..col + 4 of row `row` of a table: plain and tiled ones as matrices, `pieces` of block formats
// as rows of a matrix one chunk wide (kernels/src/block). Zero outside. The same numbers in src/cuda/ops.rs.
template <class F>
DEVICE void piece4(const uint8_t *w, unsigned cols, unsigned row, unsigned col, float out[4]) {
    size_t piece = (size_t)row * ((cols + F::COLS - 1) / F::COLS) + col / F::COLS;
    Tiles<F>::group4(w + piece / TILE_ROWS * F::CHUNK, piece % TILE_ROWS, col % F::COLS / 4, out);
}
DEVICE void table4(unsigned type, const uint8_t *w, unsigned cols, unsigned row, unsigned col, float out[4]) {
    switch (type) {
        case 0: return Plain<F32>::load4(w, cols, row, col, out);
        case 1: return Plain<F16>::load4(w, cols, row, col, out);
        case 2: return Plain<Bf16>::load4(w, cols, row, col, out);
        case 3: return piece4<Q8_0>(w, cols, row, col, out);
        case 4: return piece4<Q4_0>(w, cols, row, col, out);
        case 5: return piece4<Q4K>(w, cols, row, col, out);
        case 6: return piece4<Q6K>(w, cols, row, col, out);
        case 7: return Tiles<Q8_0>::load4(w, cols, row, col, out);
        case 8: return Tiles<Q4_0>::load4(w, cols, row, col, out);
        case 9: return Tiles<Q4K>::load4(w, cols, row, col, out);
        default: return Tiles<Q6K>::load4(w, cols, row, col, out);
    }
}

// A table, the same in src/cuda/ops.rs. Its row for an n-gram: `group` ids by the powers from `powers` on; the
// table of single ids has group 0.
struct Table {
    const uint8_t *rows;
    const long long *powers;
    unsigned type, group;
    unsigned long long n_rows;
};

constexpr unsigned MAX_TABLES = 256;

// One block per row of x (n, cols): the sum of a row of each table. ids (n, window): those up to the row's
// own, 0 before the text. With `chosen` the last id of row i is chosen[i].
KERNEL(embed)
(const Table *tables, const unsigned *ids, const unsigned *chosen, float *x, unsigned n_tables, unsigned window,
 unsigned cols) {
    __shared__ unsigned found[MAX_TABLES];
    const unsigned *last = ids + (size_t)(blockIdx.x + 1) * window;
    unsigned own = chosen ? chosen[blockIdx.x] : last[-1];
    for (unsigned t = threadIdx.x; t < n_tables; t += blockDim.x) {
        Table table = tables[t];
        unsigned long long sum = 0;
        for (unsigned i = 0; i < table.group; i++) {
            unsigned id = i + 1 == table.group ? own : last[(int)i - (int)table.group];
            sum += id * (unsigned long long)table.powers[i];
        }
        long long row = (long long)sum % (long long)table.n_rows;
        found[t] = table.group == 0 ? own : (unsigned)(row < 0 ? row + (long long)table.n_rows : row);
    }
    __syncthreads();
    x += (size_t)blockIdx.x * cols;
    for (unsigned col = threadIdx.x * 4; col < cols; col += blockDim.x * 4) {
        float sums[4] = {0, 0, 0, 0};
        for (unsigned t = 0; t < n_tables; t++) {
            float values[4];
            table4(tables[t].type, tables[t].rows, cols, found[t], col, values);
            for (unsigned i = 0; i < 4; i++) sums[i] += values[i];
        }
        for (unsigned i = 0; i < 4 && col + i < cols; i++) x[col + i] = sums[i];
    }
}
