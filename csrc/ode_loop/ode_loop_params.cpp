#include <algorithm>
#include <string>
#include <vector>

#include "common/error.h"
#include "ode_loop/ode_loop_index.h"

namespace vlakern {
namespace {

// Arguments by name, each checked once.
class Reader {
 public:
  Reader(const std::map<std::string, Tensor>& tensors, const std::map<std::string, double>& numbers)
      : tensors_(tensors), numbers_(numbers) {}

  int count(const std::string& name, int least, int most) {
    const double found = number(name);
    if (!(found >= least && found <= most) || found != static_cast<int>(found)) {
      throw UnsupportedError("ode_loop: " + name + " is " + text(found) + ", expected " +
                             std::to_string(least) + " to " + std::to_string(most));
    }
    return static_cast<int>(found);
  }
  double number(const std::string& name) const {
    const auto found = numbers_.find(name);
    if (found == numbers_.end()) dims_.fail("the number " + name + " is missing");
    return found->second;
  }
  // Contiguous, of at least 16-byte alignment unless it is small.
  template <class T>
  T* tensor(const std::string& name, DType dtype, const std::vector<std::int64_t>& shape) {
    const Tensor& t = find(name);
    bool fits = t.dtype == dtype && t.rank == static_cast<int>(shape.size()) && t.data % 16 == 0;
    std::int64_t step = 1;
    for (int i = t.rank - 1; fits && i >= 0; --i) {
      const auto size = shape[static_cast<std::size_t>(i)];
      fits = t.shape[i] == size && (size == 1 || t.stride[i] == step);
      step *= size;
    }
    if (!fits || t.data == 0) {
      dims_.fail(name + " must be contiguous " + dtype_name(dtype) + " " + shape_text(shape) +
                 " at a multiple of 16 bytes, got " + given(t));
    }
    return reinterpret_cast<T*>(t.data);
  }
  const Tensor& find(const std::string& name) const {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) dims_.fail("the tensor " + name + " is missing");
    return found->second;
  }
  [[noreturn]] void fail(const std::string& message) const { dims_.fail(message); }

 private:
  static std::string text(double value) {
    const std::string all = std::to_string(value);
    return all.substr(0, all.find('.'));
  }
  static std::string shape_text(const std::vector<std::int64_t>& shape) {
    std::string all;
    for (const std::int64_t size : shape) all += (all.empty() ? "" : ", ") + std::to_string(size);
    return "[" + all + "]";
  }
  static std::string given(const Tensor& t) {
    return std::string(dtype_name(t.dtype)) + " " +
           shape_text({t.shape, t.shape + std::max(t.rank, 0)});
  }

  const std::map<std::string, Tensor>& tensors_;
  const std::map<std::string, double>& numbers_;
  Dims dims_{"ode_loop"};
};

constexpr int kMost = 1 << 16;

void read_sizes(Reader& r, OdeLoopParams& p) {
  p.chunks = r.count("chunks", 1, kOdeLoopRows);
  p.chunk = r.count("chunk", 1, kOdeLoopRows);
  if (p.chunks * p.chunk > kOdeLoopRows) {
    throw UnsupportedError("ode_loop: " + std::to_string(p.chunks) + " chunks of " +
                           std::to_string(p.chunk) + " positions are more than 64 rows");
  }
  p.width = r.count("width", 16, kMost);
  p.mlp = r.count("mlp", 16, kMost);
  p.slots = r.count("slots", 1, kMost);
  p.heads = r.count("heads", 1, kMost);
  p.groups = r.count("groups", 1, p.heads);
  p.head_dim = r.count("head_dim", 1, kMost);
  p.depth = r.count("layers", 1, kOdeLoopLayers);
  p.splits = r.count("splits", 1, kOdeLoopSplits);
  p.steps = r.count("steps", 1, kMost);
  p.stages = r.count("stages", 1, 2);
  if (p.head_dim != 64 && p.head_dim != 128 && p.head_dim != 256) {
    throw UnsupportedError("ode_loop: head dim " + std::to_string(p.head_dim) +
                           " is not 64, 128 or 256");
  }
  if (p.width % 16 != 0 || p.mlp % 16 != 0) {
    throw UnsupportedError("ode_loop: widths " + std::to_string(p.width) + " and " +
                           std::to_string(p.mlp) + " are not multiples of 16");
  }
  if (p.heads % p.groups != 0) r.fail("heads are not a multiple of groups");
  p.dtau = 1.0f / static_cast<float>(p.steps);
  p.eps = static_cast<float>(r.number("eps"));
  for (int i = 0; i < p.stages; ++i) {
    p.c0[i] = static_cast<float>(r.number("c0." + std::to_string(i)));
    p.c1[i] = static_cast<float>(r.number("c1." + std::to_string(i)));
  }
}

void read_weights(Reader& r, OdeLoopParams& p) {
  const auto matrix = [&](const std::string& name, int rows, int k) {
    return r.tensor<const std::uint16_t>(name, DType::kBF16, {rows, round_up(k, 16)});
  };
  const auto vector = [&](const std::string& name, int size) {
    return r.tensor<const float>(name, DType::kF32, {size});
  };
  for (int i = 0; i < p.depth; ++i) {
    const std::string name = "layer." + std::to_string(i) + ".";
    OdeLoopLayer& layer = p.layers[i];
    layer.qkv = matrix(name + "qkv", (p.heads + 2 * p.groups) * p.head_dim, p.width);
    layer.o = matrix(name + "o", p.width, p.heads * p.head_dim);
    layer.gate_up = matrix(name + "gate_up", 2 * p.mlp, p.width);
    layer.down = matrix(name + "down", p.width, p.mlp);
    layer.q_norm = vector(name + "q_norm", p.head_dim);
    layer.k_norm = vector(name + "k_norm", p.head_dim);
  }
  p.embed_first = matrix("embed_first", p.width, p.slots);
  p.embed_last = matrix("embed_last", p.width, p.width);
  p.embed_bias = vector("embed_bias", p.width);
  p.unembed_first = matrix("unembed_first", p.width, p.width);
  p.unembed_first_bias = vector("unembed_first_bias", p.width);
  p.unembed_last = matrix("unembed_last", p.slots, p.width);
  p.unembed_last_bias = vector("unembed_last_bias", p.slots);
}

void read_inputs(Reader& r, OdeLoopParams& p) {
  const std::int64_t rows = p.chunks * p.chunk, half = p.head_dim / 2;
  const auto i32 = [&](const std::string& name, std::int64_t size) {
    return r.tensor<const std::int32_t>(name, DType::kI32, {size});
  };
  p.noise = r.tensor<const float>("noise", DType::kF32, {p.chunks, p.chunk, p.slots});
  p.frozen = r.tensor<const float>("frozen", DType::kF32, {p.chunks, p.chunk, p.slots});
  p.frozen_len = i32("frozen_len", p.chunks);
  p.slot_mask = r.tensor<const std::uint8_t>("slot_mask", DType::kU8, {p.chunks, p.slots});
  p.prefix_index = i32("prefix_index", p.chunks);
  p.cu_prefix = i32("cu_prefix", r.find("cu_prefix").shape[0]);
  p.kv_end = i32("kv_end", rows);
  p.positions = i32("positions", rows);
  const Tensor& times = r.find("times");
  const std::int64_t evaluations = p.steps * p.stages;
  if (times.dtype != DType::kI32 || times.rank != 2 || times.shape[0] != evaluations ||
      times.shape[1] != rows || (rows > 1 && times.stride[1] != 1)) {
    r.fail("times must be int32 [" + std::to_string(evaluations) + ", " + std::to_string(rows) +
           "] with adjacent columns");
  }
  p.times = reinterpret_cast<const std::int32_t*>(times.data);
  p.times_pitch = times.stride[0];
  const std::int64_t table = r.find("time_table").shape[0], places = r.find("cos").shape[0];
  p.time_table = r.tensor<const float>("time_table", DType::kF32, {table, p.width});
  p.cos = r.tensor<const float>("cos", DType::kF32, {places, half});
  p.sin = r.tensor<const float>("sin", DType::kF32, {places, half});
  const std::int64_t tokens = r.find("kv").rank == 4 ? r.find("kv").shape[2] : 0;
  p.kv_values = tokens * p.groups * p.head_dim;
  p.kv_layer = 2 * p.kv_values;
  p.kv = r.tensor<const std::uint16_t>("kv", DType::kBF16,
                                       {p.depth, 2, tokens, p.groups * p.head_dim});
}

void read_memory(Reader& r, OdeLoopParams& p) {
  const std::int64_t rows = p.chunks * p.chunk;
  const auto bf16 = [&](const std::string& name, int columns) {
    return r.tensor<std::uint16_t>(name, DType::kBF16, {rows, columns});
  };
  p.x = r.tensor<float>("x", DType::kF32, {p.chunks, p.chunk, p.slots});
  p.velocity = r.tensor<float>("velocity", DType::kF32, {rows, p.slots});
  p.input = bf16("input", round_up(p.slots, 16));
  p.embedded = bf16("embedded", p.width);
  p.stream = r.tensor<float>("stream", DType::kF32, {rows, p.width});
  p.rounded = bf16("rounded", p.width);
  p.qkv = bf16("qkv", (p.heads + 2 * p.groups) * p.head_dim);
  p.attended = bf16("attended", p.heads * p.head_dim);
  p.hidden = bf16("hidden", most(p.mlp, p.width));
  const std::int64_t units = ode_loop_units(p);
  p.parts = r.tensor<float>("parts", DType::kF32, {units, p.splits, 16, p.head_dim});
  p.part_rows = r.tensor<float>("part_rows", DType::kF32, {units, p.splits, 16, 2});
  p.joined = r.tensor<std::uint32_t>("joined", DType::kI32, {units});
  p.counter = r.tensor<std::uint32_t>("counter", DType::kI32, {1});
}

}  // namespace

OdeLoopParams ode_loop_params(const std::map<std::string, Tensor>& tensors,
                              const std::map<std::string, double>& numbers) {
  Reader reader(tensors, numbers);
  OdeLoopParams p{};
  read_sizes(reader, p);
  read_weights(reader, p);
  read_inputs(reader, p);
  read_memory(reader, p);
  return p;
}

OdeLoopPlan ode_loop_plan(const OdeLoopParams& p, int processors, int shared) {
  OdeLoopPlan plan{};
  plan.blocks = processors;
  plan.row_tiles = p.chunks * p.chunk <= 16 ? 1 : 4;
  const int ring = kOdeLoopWarps * kOdeLoopSlot;  // bytes of a slot of every warp
  const int stage = 2 * plan.row_tiles + kOdeLoopTiles / plan.row_tiles;
  const int needed = most(stage, ceil_div(ode_loop_attention_bytes(p.chunk, p.head_dim), ring));
  const int there = (shared - kOdeLoopFixedBytes) / ring;
  if (processors < 1 || there < needed) {
    throw UnsupportedError("ode_loop: needs " + std::to_string(kOdeLoopFixedBytes + needed * ring) +
                           " bytes of shared memory, a block has " + std::to_string(shared));
  }
  plan.ring_slots = least(there, kOdeLoopStages * stage);
  plan.shared = kOdeLoopFixedBytes + plan.ring_slots * ring;
  return plan;
}

}  // namespace vlakern
