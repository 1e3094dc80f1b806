/* A stand-in for the NVIDIA driver on machines without a GPU: the calls of runtime/cuda_driver.py on host memory.
   Handles are checked, so a call out of order or with a truncated pointer fails as it would on a GPU. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_CONTEXT = 201 };

static char context_tag, stream_tag;
static void *current;
static int retained, live_buffers, pending_copies;

int stub_live_buffers(void) { return live_buffers; }
int stub_retained(void) { return retained; }
int stub_pending_copies(void) { return pending_copies; }
int stub_is_stream(void *stream) { return stream == &stream_tag; }
static int devices(void) {
  const char *text = getenv("STUB_CUDA_DEVICES");
  return text ? atoi(text) : 1;
}

int cuInit(int flags) { return flags ? INVALID_VALUE : devices() < 0 ? NO_DEVICE : OK; }
int cuGetErrorString(int error, const char **text) {
  *text = error == OUT_OF_MEMORY ? "out of memory" : "invalid argument";
  return OK;
}
int cuDeviceGetCount(int *count) { *count = devices(); return OK; }
int cuDeviceGet(int *device, int ordinal) { *device = 7; return ordinal ? INVALID_VALUE : OK; }
int cuDeviceGetName(char *name, int length, int device) {
  strncpy(name, "Stub GPU", length);
  return device == 7 ? OK : INVALID_VALUE;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  *value = attribute == 75 ? 8 : attribute == 76 ? 9 : -1;
  return device == 7 ? OK : INVALID_VALUE;
}
int cuDevicePrimaryCtxRetain(void **context, int device) {
  *context = &context_tag;
  retained++;
  return device == 7 ? OK : INVALID_VALUE;
}
int cuDevicePrimaryCtxRelease_v2(int device) { retained--; return device == 7 ? OK : INVALID_VALUE; }
int cuCtxSetCurrent(void *context) { current = context; return context == &context_tag ? OK : INVALID_CONTEXT; }
int cuMemAlloc_v2(uint64_t *pointer, size_t size) {
  if (current != &context_tag) return INVALID_CONTEXT;
  if (size > (size_t)1 << 30) return OUT_OF_MEMORY;
  *pointer = (uint64_t)(uintptr_t)malloc(size);
  live_buffers++;
  return OK;
}
int cuMemFree_v2(uint64_t pointer) { free((void *)(uintptr_t)pointer); live_buffers--; return OK; }
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t size, void *stream) {
  if (stream != &stream_tag) return INVALID_VALUE;
  memcpy((void *)(uintptr_t)to, from, size);
  pending_copies++;
  return OK;
}
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t size, void *stream) {
  if (stream != &stream_tag) return INVALID_VALUE;
  memcpy(to, (void *)(uintptr_t)from, size);
  pending_copies++;
  return OK;
}
int cuStreamCreate(void **stream, int flags) { *stream = &stream_tag; return flags == 1 ? OK : INVALID_VALUE; }
int cuStreamSynchronize(void *stream) { pending_copies = 0; return stream == &stream_tag ? OK : INVALID_VALUE; }
int cuStreamDestroy_v2(void *stream) { return stream == &stream_tag ? OK : INVALID_VALUE; }
