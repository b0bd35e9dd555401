// All kernels, for one fatbin.
#include "attention.cu"
#include "linear.cu"
#include "rope.cu"
#include "rows.cu"
