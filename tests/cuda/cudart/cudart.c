// A stand-in for cudart, linked with compiled launchers in its place: launches and memsets go to callbacks, which run
// them in the interpreter. A launcher that calls anything that is not here does not link: nothing may wait for the
// device or allocate on it.
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

typedef struct {
  unsigned x, y, z;
} dim3;
typedef struct {
  const void* host;   // the stub's address, which launches name
  const char* name;   // in the PTX
  int dynamic_limit;  // by cudaFuncSetAttribute
} Kernel;
typedef struct {
  dim3 grid, block;
  size_t shared;
  void* stream;
} Configuration;

enum { kSuccess = 0, kInvalidValue = 1, kInvalidConfiguration = 9, kInvalidDeviceFunction = 98, kNoCallback = 999 };
enum { kMaxDynamicShared = 8, kCarveout = 9 };  // cudaFuncAttribute
enum { kAttributes = 256, kDepth = 16, kDefaultShared = 48 << 10 };

// returns a cudaError_t; geometry is grid and block
typedef int (*Launch)(const char* kernel, const unsigned geometry[6], size_t shared, size_t dynamic_limit,
                      void** arguments, void* stream);
typedef int (*Memset)(void* to, int value, size_t bytes);

static Kernel* kernels;
static int count;
static Configuration configurations[kDepth];
static int depth;
static int last_error;
static int blocks_per_multiprocessor = 2;
static Launch on_launch;
static Memset on_memset;
// an A100, unless a test says otherwise
static int attributes[kAttributes] = {
    [1] = 1024,        // maxThreadsPerBlock
    [8] = 48 << 10,    // maxSharedMemoryPerBlock
    [10] = 32,         // warpSize
    [16] = 108,        // multiProcessorCount
    [38] = 40 << 20,   // l2CacheSize
    [39] = 2048,       // maxThreadsPerMultiProcessor
    [75] = 8,          // computeCapabilityMajor
    [76] = 0,          // computeCapabilityMinor
    [81] = 164 << 10,  // maxSharedMemoryPerMultiprocessor
    [97] = 163 << 10,  // maxSharedMemoryPerBlockOptin
    [106] = 32,        // maxBlocksPerMultiprocessor
};

static int failed(int error) { return last_error = error; }

static Kernel* find(const void* host) {
  for (int i = 0; i < count; ++i)
    if (kernels[i].host == host) return &kernels[i];
  return NULL;
}

// --- for the tests ---

void simulated_callbacks(Launch launch, Memset set) {
  on_launch = launch;
  on_memset = set;
}
void simulated_attribute(int attribute, int value) { attributes[attribute] = value; }
void simulated_occupancy(int blocks) { blocks_per_multiprocessor = blocks; }
int simulated_pending_error(void) { return last_error; }

// --- what the code that nvcc generates calls ---

void** __cudaRegisterFatBinary(void* binary) {
  void** handle = malloc(sizeof *handle);
  *handle = binary;
  return handle;
}
void __cudaRegisterFatBinaryEnd(void** handle) { (void)handle; }
void __cudaUnregisterFatBinary(void** handle) { free(handle); }
char __cudaInitModule(void** handle) {
  (void)handle;
  return 1;
}
void __cudaRegisterFunction(void** handle, const char* host, char* device, const char* name, int limit, void* tid,
                            void* bid, void* block, void* grid, int* warp) {
  (void)handle, (void)device, (void)limit, (void)tid, (void)bid, (void)block, (void)grid, (void)warp;
  kernels = realloc(kernels, (count + 1) * sizeof *kernels);
  kernels[count++] = (Kernel){host, name, kDefaultShared};
}
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void* stream) {
  if (depth == kDepth) return kInvalidConfiguration;
  configurations[depth++] = (Configuration){grid, block, shared, stream};
  return kSuccess;
}
int __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  if (depth == 0) return failed(kInvalidConfiguration);
  const Configuration c = configurations[--depth];
  *grid = c.grid;
  *block = c.block;
  *shared = c.shared;
  *(void**)stream = c.stream;
  return kSuccess;
}

// --- the runtime ---

int cudaLaunchKernel(const void* host, dim3 grid, dim3 block, void** arguments, size_t shared, void* stream) {
  const Kernel* kernel = find(host);
  if (kernel == NULL) return failed(kInvalidDeviceFunction);
  if (on_launch == NULL) return failed(kNoCallback);
  const unsigned geometry[6] = {grid.x, grid.y, grid.z, block.x, block.y, block.z};
  const int error = on_launch(kernel->name, geometry, shared, kernel->dynamic_limit, arguments, stream);
  return error == kSuccess ? error : failed(error);
}
int __cudaGetKernel(void** kernel, const void* host) {
  *kernel = (void*)host;
  return kSuccess;
}
int __cudaLaunchKernel(void* kernel, dim3 grid, dim3 block, void** arguments, size_t shared, void* stream) {
  return cudaLaunchKernel(kernel, grid, block, arguments, shared, stream);
}
int __cudaLaunchKernel_ptsz(void* kernel, dim3 grid, dim3 block, void** arguments, size_t shared, void* stream) {
  return cudaLaunchKernel(kernel, grid, block, arguments, shared, stream);
}
int cudaGetLastError(void) {
  const int error = last_error;
  last_error = kSuccess;
  return error;
}
int cudaPeekAtLastError(void) { return last_error; }
const char* cudaGetErrorString(int error) { return error == kSuccess ? "no error" : "an error of the simulation"; }
const char* cudaGetErrorName(int error) { return cudaGetErrorString(error); }

int cudaFuncSetAttribute(const void* host, int attribute, int value) {
  Kernel* kernel = find(host);
  if (kernel == NULL) return failed(kInvalidDeviceFunction);
  if (attribute == kCarveout) return kSuccess;
  if (attribute != kMaxDynamicShared || value < 0 || value > attributes[97]) return failed(kInvalidValue);
  kernel->dynamic_limit = value;
  return kSuccess;
}
int cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* host, int threads, size_t shared) {
  (void)threads, (void)shared;
  if (find(host) == NULL) return failed(kInvalidDeviceFunction);
  *blocks = blocks_per_multiprocessor;
  return kSuccess;
}
int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void* host, int threads, size_t shared,
                                                           unsigned flags) {
  (void)flags;
  return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, host, threads, shared);
}
int cudaGetDevice(int* device) {
  *device = 0;
  return kSuccess;
}
int cudaDeviceGetAttribute(int* value, int attribute, int device) {
  if (device != 0 || attribute < 0 || attribute >= kAttributes || attributes[attribute] == 0)
    if (attribute != 76) return failed(kInvalidValue);  // a minor version may be 0
  *value = attributes[attribute];
  return kSuccess;
}
int cudaMemsetAsync(void* to, int value, size_t bytes, void* stream) {
  (void)stream;
  if (on_memset == NULL) return failed(kNoCallback);
  const int error = on_memset(to, value, bytes);
  return error == kSuccess ? error : failed(error);
}
