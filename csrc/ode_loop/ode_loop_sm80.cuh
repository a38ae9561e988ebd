// The phases of ode_loop as a warp program, for sm_80 and newer: see common/warp.h.
#pragma once

#include "ode_loop/ode_loop_attention.cuh"
#include "ode_loop/ode_loop_product.cuh"

namespace vlakern {

// What all blocks do between two meetings.
enum class OdeLoopPhase {
  kEmbedFirst,
  kEmbedLast,
  kQkv,
  kAttend,
  kOut,
  kGateUp,
  kDown,
  kUnembedFirst,
  kUnembedLast
};

struct OdeLoopPlace {
  int evaluation;
  int layer;
  OdeLoopPhase phase;
};

VLAKERN_HOST_DEVICE OdeLoopPlace ode_loop_after(const OdeLoopPlace& at, int depth) {
  switch (at.phase) {
    case OdeLoopPhase::kDown:
      if (at.layer + 1 < depth) return {at.evaluation, at.layer + 1, OdeLoopPhase::kQkv};
      return {at.evaluation, 0, OdeLoopPhase::kUnembedFirst};
    case OdeLoopPhase::kUnembedLast:
      return {at.evaluation + 1, 0, OdeLoopPhase::kEmbedFirst};
    default:
      return {at.evaluation, at.layer, static_cast<OdeLoopPhase>(static_cast<int>(at.phase) + 1)};
  }
}

// One place in the code for all products and one for all attentions: what differs is data.
template <class W, int kRowTiles, int kHeadDim>
class OdeLoop {
 public:
  VLAKERN_DEVICE OdeLoop(W& w, const OdeLoopParams& p, int ring_slots)
      : w_(w), p_(p), multiplier_(w, p.chunks * p.chunk, ring_slots, p.eps) {}

  VLAKERN_DEVICE void run() {
    start();
    OdeLoopPlace at{0, 0, OdeLoopPhase::kEmbedFirst};
    multiplier_.prefetch(product(at));
    const int evaluations = p_.steps * p_.stages;
    while (at.evaluation < evaluations) {
      meet_all();
      const OdeLoopPlace next = ode_loop_after(at, p_.depth);
      const bool more = next.evaluation < evaluations && next.phase != OdeLoopPhase::kAttend;
      if (at.phase == OdeLoopPhase::kAttend) {
        OdeLoopAttention<W, kHeadDim>(w_, p_).run(at.layer);
        // All warps have left the memory that the copies go to: an attention ends with sync().
        multiplier_.prefetch(product(next));
      } else {
        multiplier_.run(product(at), more, product(next),
                        [&](int row, int column, const OdeLoopFound& found) {
                          finish(at, row, column, found);
                        });
      }
      at = next;
    }
  }

 private:
  VLAKERN_DEVICE int rows() const { return p_.chunks * p_.chunk; }
  VLAKERN_DEVICE int input_pitch() const { return round_up(p_.slots, 16); }
  VLAKERN_DEVICE int qkv_width() const { return (p_.heads + 2 * p_.groups) * kHeadDim; }

  VLAKERN_DEVICE void meet_all() {
    w_.sync();
    if (w_.warp() == 0) {
      w_.each([&](int lane) {
        if (lane == 0) meet(w_, p_.counter);
      });
    }
    w_.sync();
  }

  // The state begins as noise.
  VLAKERN_DEVICE void start() {
    const int pitch = input_pitch(), threads = kOdeLoopWarps * kLanes;
    w_.each([&](int lane) {
      const int first = w_.block() * threads + w_.warp() * kLanes + lane;
      for (int i = first; i < rows() * pitch; i += w_.blocks() * threads) {
        const int row = i / pitch, slot = i % pitch;
        const bool there = slot < p_.slots;
        const float value = there ? p_.noise[row * p_.slots + slot] : 0.0f;
        if (there) p_.x[row * p_.slots + slot] = value;
        p_.input[i] = static_cast<std::uint16_t>(bf16_bits(value));
      }
    });
  }

  VLAKERN_DEVICE OdeLoopProduct product(const OdeLoopPlace& at) const {
    const OdeLoopLayer& layer = p_.layers[at.layer];
    const int width = p_.width, pitch = input_pitch(), heads = p_.heads * kHeadDim;
    switch (at.phase) {
      case OdeLoopPhase::kEmbedFirst:
        return {p_.input, p_.embed_first, pitch, width, false, false};
      case OdeLoopPhase::kEmbedLast:
        return {p_.embedded, p_.embed_last, width, width, false, false};
      case OdeLoopPhase::kQkv:
        return {p_.rounded, layer.qkv, width, qkv_width(), false, true};
      case OdeLoopPhase::kOut:
        return {p_.attended, layer.o, heads, width, false, false};
      case OdeLoopPhase::kGateUp:
        return {p_.rounded, layer.gate_up, width, p_.mlp, true, true};
      case OdeLoopPhase::kDown:
        return {p_.hidden, layer.down, p_.mlp, width, false, false};
      case OdeLoopPhase::kUnembedFirst:
        return {p_.rounded, p_.unembed_first, width, width, false, true};
      case OdeLoopPhase::kUnembedLast:
        return {p_.hidden, p_.unembed_last, width, p_.slots, false, false};
      default:
        return {};  // of an attention
    }
  }

  // Two sums that lie side by side, to where they belong.
  VLAKERN_DEVICE void finish(const OdeLoopPlace& at, int row, int column,
                             const OdeLoopFound& found) {
    float first = found.v[0], second = found.v[1];
    const int place = row * p_.width + column;
    switch (at.phase) {
      case OdeLoopPhase::kEmbedFirst: {
        const std::int64_t time = p_.times[at.evaluation * p_.times_pitch + row];
        const float* bias = p_.time_table + time * p_.width + column;
        return put(p_.embedded + place, silu(first + bias[0]), silu(second + bias[1]));
      }
      case OdeLoopPhase::kEmbedLast:
        return set_stream(place, first + p_.embed_bias[column], second + p_.embed_bias[column + 1]);
      case OdeLoopPhase::kQkv:
        return put(p_.qkv + row * qkv_width() + column, first, second);
      case OdeLoopPhase::kOut:
      case OdeLoopPhase::kDown:
        return set_stream(place, w_.load4(p_.stream + place) + first,
                          w_.load4(p_.stream + place + 1) + second);
      case OdeLoopPhase::kGateUp:
        return put(p_.hidden + row * p_.mlp + column, silu(first) * found.v[2],
                   silu(second) * found.v[3]);
      case OdeLoopPhase::kUnembedFirst:
        first += p_.unembed_first_bias[column];
        second += p_.unembed_first_bias[column + 1];
        return put(p_.hidden + place, first > 0 ? first : 0, second > 0 ? second : 0);
      default:
        update(at.evaluation % p_.stages, row, column, first);
        if (column + 1 < p_.slots) update(at.evaluation % p_.stages, row, column + 1, second);
    }
  }

  VLAKERN_DEVICE static void put(std::uint16_t* to, float first, float second) {
    *reinterpret_cast<std::uint32_t*>(to) = bf16_pair(first, second);
  }
  VLAKERN_DEVICE float silu(float x) const { return x / (1.0f + w_.exp2(-1.44269504f * x)); }
  VLAKERN_DEVICE void set_stream(int at, float first, float second) {
    p_.stream[at] = first;
    p_.stream[at + 1] = second;
    put(p_.rounded + at, first, second);
  }

  // The update of ode_step, at one slot.
  VLAKERN_DEVICE void update(int stage, int row, int slot, float product) {
    if (slot >= p_.slots) return;
    const int chunk = row / p_.chunk, at = row * p_.slots + slot;
    const float v = product + p_.unembed_last_bias[slot];
    float y = w_.load4(p_.x + at);
    if (row % p_.chunk < p_.frozen_len[chunk]) {
      y = p_.frozen[at];
    } else if (p_.slot_mask[chunk * p_.slots + slot] != 0) {
      if (p_.c0[stage] != 0) y = fmaf(p_.dtau * p_.c0[stage], w_.load4(p_.velocity + at), y);
      y = fmaf(p_.dtau * p_.c1[stage], v, y);
    }
    (stage + 1 == p_.stages ? p_.x : p_.velocity)[at] = stage + 1 == p_.stages ? y : v;
    p_.input[row * input_pitch() + slot] = static_cast<std::uint16_t>(bf16_bits(y));
  }

  W& w_;
  const OdeLoopParams& p_;
  OdeLoopMultiplier<W, kRowTiles> multiplier_;
};

}  // namespace vlakern
