// All kernels, for one fatbin.
#include "rope.cu"
//
#include "attention.cu"
#include "embedding.cu"
#include "linear.cu"
#include "rows.cu"
#include "sample.cu"
