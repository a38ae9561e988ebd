// The constants of a GPU that decide how kernels are built, one JSON line each on stdout.
//
//   constants MEASUREMENT    one of: copy read cold_burst graph_launch grid_barrier
//                            cluster_barrier programmatic_edge memory_hop
//
// A process for each measurement, since a CUDA error ends all work of its process. Exit code 0:
// done, 2: wrong words, 3: a CUDA error, 4: this GPU does not have what is measured. Needs CUDA 12
// or newer.
#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "arithmetic.h"

#define CHECK(call)                                                                            \
  do {                                                                                         \
    const cudaError_t status_ = (call);                                                        \
    if (status_ != cudaSuccess) {                                                              \
      std::fprintf(stderr, "line %d: %s: %s\n", __LINE__, #call, cudaGetErrorString(status_)); \
      std::exit(3);                                                                            \
    }                                                                                          \
  } while (0)

namespace {

using machine::kThreads;
using std::int64_t;

constexpr int kPasses = 10;
constexpr int64_t kMiB = 1 << 20;
constexpr unsigned kMostSpins = 1u << 27;  // about a second: a lost signal must not hang the GPU

// Device code.

__global__ void fill(uint4* words, int64_t count) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += step) {
    const unsigned x = static_cast<unsigned>(i) * 2654435761u;
    words[i] = make_uint4(x, x ^ 0x9e3779b9u, x * 31u, ~x);
  }
}

// Reads every word once. The sum decides about a write, so that no load can be left out.
template <int kUnroll>
__global__ void __launch_bounds__(kThreads)
    read_words(const uint4* words, int64_t count, unsigned* sink) {
  unsigned sum = 0;
  const int64_t turns = machine::turns_for(count, gridDim.x, kUnroll);
  for (int64_t turn = 0; turn < turns; ++turn) {
    uint4 found[kUnroll];
#pragma unroll
    for (int load = 0; load < kUnroll; ++load) {
      const int64_t word = machine::word_of(turn, gridDim.x, blockIdx.x, kUnroll, load,
                                            static_cast<int>(threadIdx.x));
      found[load] = word < count ? __ldg(words + word) : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int load = 0; load < kUnroll; ++load)
      sum += found[load].x ^ found[load].y ^ found[load].z ^ found[load].w;
  }
  if (sum == 0xdeadbeefu) *sink = sum;
}

__global__ void nothing() {}

__global__ void grid_barriers(int count) {
  const cooperative_groups::grid_group grid = cooperative_groups::this_grid();
  for (int i = 0; i < count; ++i) grid.sync();
}

__global__ void cluster_barriers(int count) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  for (int i = 0; i < count; ++i) {
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
  }
#else
  (void)count;
#endif
}

// One link of a chain: lets its successor start, waits for its predecessor's memory, adds 1. The
// sum shows that no link ran before its predecessor's writes could be seen.
__global__ void link(unsigned* total) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
  cudaGridDependencySynchronize();
#endif
  if (blockIdx.x == 0 && threadIdx.x == 0) *total = *total + 1;
}

__device__ void release(unsigned* flag, unsigned value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}

__device__ unsigned acquire(const unsigned* flag) {
  unsigned value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
  return value;
}

// Two blocks answer each other; a round is two hops. flags[2] counts waits that were given up.
__global__ void memory_hops(unsigned* flags, unsigned base, int rounds) {
  if (threadIdx.x != 0) return;
  unsigned* mine = flags + blockIdx.x * 64;
  unsigned* other = flags + (1 - blockIdx.x) * 64;
  for (int i = 1; i <= rounds; ++i) {
    const unsigned value = base + static_cast<unsigned>(i);
    if (blockIdx.x == 0) release(mine, value);
    unsigned spins = 0;
    while (acquire(other) != value) {
      if (++spins < kMostSpins) continue;
      atomicAdd(flags + 128, 1u);
      return;
    }
    if (blockIdx.x == 1) release(mine, value);
  }
}

// Host code.

struct Gpu {
  cudaDeviceProp seen;
  cudaStream_t stream;
  cudaEvent_t begin, end;
  unsigned* sink;
};

Gpu open_gpu() {
  Gpu gpu{};
  int device = 0;
  CHECK(cudaGetDevice(&device));
  CHECK(cudaGetDeviceProperties(&gpu.seen, device));
  CHECK(cudaStreamCreateWithFlags(&gpu.stream, cudaStreamNonBlocking));
  CHECK(cudaEventCreate(&gpu.begin));
  CHECK(cudaEventCreate(&gpu.end));
  CHECK(cudaMalloc(&gpu.sink, 4096));
  CHECK(cudaMemset(gpu.sink, 0, 4096));
  return gpu;
}

void say(const char* name, double value, const char* unit, const char* method,
         const std::string& more = "") {
  std::printf("{\"name\": \"%s\", \"value\": %.9g, \"unit\": \"%s\", \"method\": \"%s\"%s}\n", name,
              value, unit, method, more.c_str());
  std::fflush(stdout);
}

[[noreturn]] void lacks(const char* what) {
  std::fprintf(stderr, "not on this GPU: %s\n", what);
  std::exit(4);
}

// Memory of at most `most` bytes and a quarter of what is free, filled; `bytes` says how much.
uint4* filled(const Gpu& gpu, int64_t most, int64_t* bytes) {
  std::size_t free = 0, total = 0;
  CHECK(cudaMemGetInfo(&free, &total));
  *bytes = std::min<int64_t>(most, static_cast<int64_t>(free / 4)) / (16 * kMiB) * (16 * kMiB);
  if (*bytes == 0) lacks("64 MiB of free memory");
  void* memory = nullptr;
  CHECK(cudaMalloc(&memory, static_cast<std::size_t>(*bytes)));
  fill<<<1024, kThreads, 0, gpu.stream>>>(static_cast<uint4*>(memory), *bytes / 16);
  CHECK(cudaGetLastError());
  CHECK(cudaStreamSynchronize(gpu.stream));
  return static_cast<uint4*>(memory);
}

// Seconds between two events around what `work` gives to the stream.
double timed(const Gpu& gpu, const std::function<void()>& work) {
  CHECK(cudaEventRecord(gpu.begin, gpu.stream));
  work();
  CHECK(cudaEventRecord(gpu.end, gpu.stream));
  CHECK(cudaEventSynchronize(gpu.end));
  float milliseconds = 0;
  CHECK(cudaEventElapsedTime(&milliseconds, gpu.begin, gpu.end));
  return milliseconds * 1e-3;
}

std::vector<double> passes(
    const Gpu& gpu, const std::function<void()>& work,
    const std::function<void()>& before = [] {}) {
  std::vector<double> seconds;
  for (int pass = 0; pass <= kPasses; ++pass) {
    before();
    const double one = timed(gpu, work);
    if (pass > 0) seconds.push_back(one);  // the first warms up
  }
  return seconds;
}

double best(const std::vector<double>& seconds) {
  return *std::min_element(seconds.begin(), seconds.end());
}

void launch_read(const Gpu& gpu, int unroll, const uint4* words, int64_t bytes, int64_t most) {
  const auto blocks = static_cast<unsigned>(machine::blocks_for(bytes, unroll, most));
  const int64_t count = bytes / 16;
  switch (unroll) {
    case 1:
      read_words<1><<<blocks, kThreads, 0, gpu.stream>>>(words, count, gpu.sink);
      break;
    case 2:
      read_words<2><<<blocks, kThreads, 0, gpu.stream>>>(words, count, gpu.sink);
      break;
    case 4:
      read_words<4><<<blocks, kThreads, 0, gpu.stream>>>(words, count, gpu.sink);
      break;
    default:
      read_words<8><<<blocks, kThreads, 0, gpu.stream>>>(words, count, gpu.sink);
      break;
  }
  CHECK(cudaGetLastError());
}

// A graph of what `work` gives to the stream; its nodes depend on each other in order.
class Graph {
 public:
  Graph(const Gpu& gpu, const std::function<void()>& work) : gpu_(gpu) {
    CHECK(cudaStreamBeginCapture(gpu.stream, cudaStreamCaptureModeThreadLocal));
    work();
    CHECK(cudaStreamEndCapture(gpu.stream, &graph_));
    CHECK(cudaGraphInstantiate(&exec_, graph_, 0));
    CHECK(cudaGraphUpload(exec_, gpu.stream));
    CHECK(cudaStreamSynchronize(gpu.stream));
  }
  ~Graph() {
    cudaGraphExecDestroy(exec_);
    cudaGraphDestroy(graph_);
  }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  void launch() const { CHECK(cudaGraphLaunch(exec_, gpu_.stream)); }

 private:
  const Gpu& gpu_;
  cudaGraph_t graph_ = nullptr;
  cudaGraphExec_t exec_ = nullptr;
};

// Seconds of one more node, from graphs of few and of many; a graph's own launch cancels.
double node_seconds(
    const Gpu& gpu, int few, int many, const std::function<void(int, int)>& node,
    const std::function<void()>& before = [] {}) {
  double seconds[2];
  const int counts[2] = {few, many};
  for (int i = 0; i < 2; ++i) {
    const Graph graph(gpu, [&] {
      for (int j = 0; j < counts[i]; ++j) node(j, counts[i]);
    });
    seconds[i] = machine::median(passes(gpu, [&] { graph.launch(); }, before));
  }
  return machine::slope(few, seconds[0], many, seconds[1]);
}

// Seconds of one more turn of a kernel that makes so many.
double turn_seconds(const Gpu& gpu, int few, int many, const std::function<void(int)>& run) {
  const double a = machine::median(passes(gpu, [&] { run(few); }));
  const double b = machine::median(passes(gpu, [&] { run(many); }));
  return machine::slope(few, a, many, b);
}

void copy(const Gpu& gpu) {
  int64_t bytes = 0, same = 0;
  uint4* from = filled(gpu, 1024 * kMiB, &bytes);
  uint4* to = filled(gpu, bytes, &same);
  bytes = std::min(bytes, same);
  const double seconds = best(passes(gpu, [&] {
    CHECK(cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), cudaMemcpyDeviceToDevice,
                          gpu.stream));
  }));
  say("copy_bandwidth", 2.0 * static_cast<double>(bytes) / seconds, "B/s",
      "cudaMemcpy on the device, bytes read and written, best of 10",
      ", \"bytes\": " + std::to_string(bytes));
}

void read(const Gpu& gpu) {
  int64_t bytes = 0;
  const uint4* words = filled(gpu, 1024 * kMiB, &bytes);
  double fastest = 1e9;
  int with = 0;
  for (int each : {2, 4, 8, 16}) {
    const double seconds = best(passes(gpu, [&] {
      launch_read(gpu, 8, words, bytes, static_cast<int64_t>(gpu.seen.multiProcessorCount) * each);
    }));
    if (seconds < fastest) fastest = seconds, with = each;
  }
  say("read_bandwidth", static_cast<double>(bytes) / fastest, "B/s",
      "16-byte loads, best of 10 and of 2 to 16 blocks per multiprocessor",
      ", \"bytes\": " + std::to_string(bytes) + ", \"blocks_per_sm\": " + std::to_string(with));
}

void cold_burst(const Gpu& gpu) {
  int64_t buffer = 0, flush = 0;
  const uint4* words = filled(gpu, 2048 * kMiB, &buffer);
  const uint4* other = filled(gpu, std::max<int64_t>(4 * gpu.seen.l2CacheSize, 64 * kMiB), &flush);
  const int64_t most = static_cast<int64_t>(gpu.seen.multiProcessorCount) * 8;
  std::vector<double> sizes, times;
  for (int64_t bytes = kMiB / 16; bytes <= 256 * kMiB && bytes * 8 <= buffer; bytes *= 2) {
    const int many = static_cast<int>(std::min<int64_t>(64, buffer / bytes)), few = many / 4;
    double fastest = 1e9;
    int with = 0;
    for (int unroll : {1, 2, 4, 8}) {
      const double seconds = node_seconds(
          gpu, few, many,
          [&](int i, int count) {
            const int64_t begin = machine::window_begin(i, count, bytes, buffer);
            launch_read(gpu, unroll, words + begin / 16, bytes, most);
          },
          [&] { launch_read(gpu, 8, other, flush, most); });
      if (seconds < fastest) fastest = seconds, with = unroll;
    }
    sizes.push_back(static_cast<double>(bytes));
    times.push_back(fastest);
    say("cold_burst", fastest * 1e6, "us",
        "a kernel in a graph that reads so many bytes no cache holds, its launch included",
        ", \"bytes\": " + std::to_string(bytes) + ", \"loads_in_flight\": " + std::to_string(with));
  }
  for (double one : times)
    if (one <= 0) return;  // noise; the points speak for themselves
  const machine::Line line = machine::fit(sizes, times);
  say("cold_burst_fixed", line.fixed * 1e6, "us", "least squares over cold_burst");
  say("cold_burst_rate", line.rate, "B/s", "least squares over cold_burst");
}

void graph_launch(const Gpu& gpu) {
  const auto all = static_cast<unsigned>(gpu.seen.multiProcessorCount);
  for (unsigned blocks : {1u, all}) {
    const double seconds = node_seconds(gpu, 200, 1200, [&](int, int) {
      nothing<<<blocks, kThreads, 0, gpu.stream>>>();
      CHECK(cudaGetLastError());
    });
    say("graph_launch", seconds * 1e6, "us", "one more empty kernel in a chain inside a graph",
        ", \"blocks\": " + std::to_string(blocks));
  }
}

void grid_barrier(const Gpu& gpu) {
  if (!gpu.seen.cooperativeLaunch) lacks("cooperative launches");
  const dim3 grid(static_cast<unsigned>(gpu.seen.multiProcessorCount));
  const double seconds = turn_seconds(gpu, 100, 2100, [&](int count) {
    void* arguments[] = {&count};
    CHECK(cudaLaunchCooperativeKernel(reinterpret_cast<void*>(grid_barriers), grid, dim3(kThreads),
                                      arguments, 0, gpu.stream));
  });
  say("grid_barrier", seconds * 1e6, "us", "cooperative groups, one block per multiprocessor",
      ", \"blocks\": " + std::to_string(grid.x));
}

void cluster_barrier(const Gpu& gpu) {
  if (gpu.seen.major < 9) lacks("thread block clusters (sm_90 and newer)");
  for (unsigned size : {2u, 4u, 8u}) {
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = size;
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(size);
    config.blockDim = dim3(kThreads);
    config.stream = gpu.stream;
    config.attrs = &attribute;
    config.numAttrs = 1;
    int clusters = 0;
    CHECK(cudaOccupancyMaxActiveClusters(&clusters, cluster_barriers, &config));
    if (clusters < 1) continue;
    config.gridDim = dim3(size * static_cast<unsigned>(clusters));
    const double seconds = turn_seconds(gpu, 100, 4100, [&](int count) {
      CHECK(cudaLaunchKernelEx(&config, cluster_barriers, count));
    });
    say("cluster_barrier", seconds * 1e6, "us", "barrier.cluster, as many clusters as fit at once",
        ", \"cluster\": " + std::to_string(size) + ", \"clusters\": " + std::to_string(clusters));
  }
}

void programmatic_edge(const Gpu& gpu) {
  if (gpu.seen.major < 9) lacks("programmatic dependent launch (sm_90 and newer)");
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  for (unsigned programmatic : {0u, 1u}) {
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(gpu.seen.multiProcessorCount));
    config.blockDim = dim3(kThreads);
    config.stream = gpu.stream;
    config.attrs = &attribute;
    config.numAttrs = programmatic;
    unsigned* total = gpu.sink + 512;
    CHECK(cudaMemsetAsync(total, 0, sizeof(unsigned), gpu.stream));
    const int few = 100, many = 1100;
    const double seconds = node_seconds(
        gpu, few, many, [&](int, int) { CHECK(cudaLaunchKernelEx(&config, link, total)); });
    unsigned found = 0;
    CHECK(cudaMemcpyAsync(&found, total, sizeof found, cudaMemcpyDeviceToHost, gpu.stream));
    CHECK(cudaStreamSynchronize(gpu.stream));
    if (found != static_cast<unsigned>((few + many) * (kPasses + 1))) {
      std::fprintf(stderr, "links ran out of order: %u\n", found);
      std::exit(3);
    }
    say(programmatic ? "programmatic_edge" : "full_edge", seconds * 1e6, "us",
        programmatic
            ? "one more kernel in a chain inside a graph, launched at its predecessor's start"
            : "the same chain with full dependencies");
  }
}

void memory_hop(const Gpu& gpu) {
  if (!gpu.seen.cooperativeLaunch) lacks("cooperative launches, which keep both blocks running");
  unsigned base = 0;
  const double seconds = turn_seconds(gpu, 100, 2100, [&](int rounds) {
    unsigned* flags = gpu.sink;
    void* arguments[] = {&flags, &base, &rounds};
    CHECK(cudaLaunchCooperativeKernel(reinterpret_cast<void*>(memory_hops), dim3(2), dim3(32),
                                      arguments, 0, gpu.stream));
    base += static_cast<unsigned>(rounds);
  });
  unsigned lost = 0;
  CHECK(cudaMemcpy(&lost, gpu.sink + 128, sizeof lost, cudaMemcpyDeviceToHost));
  if (lost != 0) {
    std::fprintf(stderr, "%u signals were lost\n", lost);
    std::exit(3);
  }
  say("memory_hop", seconds * 1e6 / 2, "us", "a release seen by an acquire in another block");
}

struct Measurement {
  const char* name;
  void (*run)(const Gpu&);
};

constexpr Measurement kMeasurements[] = {
    {"copy", copy},
    {"read", read},
    {"cold_burst", cold_burst},
    {"graph_launch", graph_launch},
    {"grid_barrier", grid_barrier},
    {"cluster_barrier", cluster_barrier},
    {"programmatic_edge", programmatic_edge},
    {"memory_hop", memory_hop},
};

}  // namespace

int main(int argc, char** argv) {
  for (const Measurement& one : kMeasurements) {
    if (argc != 2 || std::strcmp(argv[1], one.name) != 0) continue;
    const Gpu gpu = open_gpu();
    one.run(gpu);
    CHECK(cudaStreamSynchronize(gpu.stream));
    return 0;
  }
  std::fprintf(stderr, "usage: constants MEASUREMENT, one of:");
  for (const Measurement& one : kMeasurements) std::fprintf(stderr, " %s", one.name);
  std::fprintf(stderr, "\n");
  return 2;
}
