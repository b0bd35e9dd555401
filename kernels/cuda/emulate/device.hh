// What the emulated libraries share: memory and streams of the device, both in driver.cc.
#pragma once

#include <stddef.h>

#include <functional>

// A number from the environment.
size_t setting(const char *name, size_t otherwise);

// Whether these bytes of the device lie in one allocation; said on standard error if not.
bool inside(size_t at, size_t n);

// Whether an allocation begins here: on a GPU that is at a multiple of 256 bytes.
bool begins(size_t at);

// Work for a stream, or for the graph that it records; the driver's error, or 0.
int enqueue(void *stream, std::function<int()> work);
