// A policy directory on the CPU engine, for C++ programs without Python.
//
// It reads the native directory (config.json, model.safetensors, stats.json, tokenizer.json), packs
// the weights in memory and runs the kernels that Python's policies run. What it does not take says
// so: action frames other than `native`, states in words, adaptive norms, layers that cross.
// Nothing here limits a robot: the executor does, and the robot's own emergency stop stays in
// charge.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "../common/error.h"

namespace vlakern {

// uint8 RGB, rows `stride` bytes apart (0: 3 * width). The memory stays the caller's.
struct Image {
  const std::uint8_t* pixels = nullptr;
  int height = 0, width = 0;
  std::ptrdiff_t stride = 0;
};

struct Observation {
  std::map<std::string, Image> images;  // by view; one that dropped out is left out
  std::vector<double> state;            // in the robot's own units
  std::string instruction;
  std::vector<std::int32_t> tokens;  // of the instruction, where the tokenizer is not read here
};

// How a chunk is made to agree with what was decided. kFrozen begins with those actions exactly,
// for networks trained with delays. kCheap leads any network to all of them, less and less firmly
// (arXiv 2506.07339, without the Jacobian, which takes a backward pass: that is Python's alone).
enum class PrefixForm : int { kFrozen, kCheap };

// What the robot goes on to do while its next chunk is made (real-time chunking).
struct ActionPrefix {
  std::vector<float> actions;  // [steps, actions] of the chunk before, in the robot's own units;
                               // the first is for the instant of the observation
  int frozen = 0;              // how many of them are executed before the next chunk is there
  PrefixForm form = PrefixForm::kFrozen;
};

// The same in the network's own numbers.
struct Decided {
  std::vector<float> actions;  // [chunk, slots]
  int frozen = 0;              // so many leading positions are those
  std::vector<float> weights;  // [chunk, slots], 0 to 1: how firmly each number is led; or none
  float most = 5.0f;           // of guidance, the paper's beta
};

struct PolicyOptions {
  std::string dtype = "fp32";  // of the large products: fp32, bf16 or int8
  int threads = 0;             // 0: every core of this process
  int most_words = 128;        // text tokens of a prompt that there is room for
};

struct PolicyFacts {
  std::vector<std::string> views;  // in the order in which the policy sees them
  int image_size;                  // side of what it sees [px]; other images are resized
  int chunk, execute;              // actions per prediction, and how many to run
  int slots, actions, states;      // numbers of a normalised action, a command and a state
  double control_rate;             // of its actions [Hz]
};

// One thread at a time. Errors are InputError and UnsupportedError, one sentence each.
class Policy {
 public:
  explicit Policy(const std::string& directory, const PolicyOptions& options = {});
  ~Policy();
  Policy(Policy&&) noexcept;
  Policy& operator=(Policy&&) noexcept;

  const PolicyFacts& facts() const;
  // Token ids of an instruction after the policy's prompt rule: byte-level BPE, ASCII text.
  std::vector<std::int32_t> tokens(const std::string& instruction) const;
  // Normal numbers [chunk, slots]; the same seed, the same numbers, not those of Python.
  std::vector<float> noise(std::uint64_t seed) const;

  // Keys and values of everything that does not depend on the noise; they stay until the next call.
  void prefill(const Observation& observation);
  // Actions that were decided before, seen from the state of the observation.
  Decided decided(const ActionPrefix& prefix, const std::vector<double>& state) const;
  // Noise [chunk, slots] to normalised actions, all steps of the integration in one call.
  std::vector<float> integrate(const std::vector<float>& noise, const Decided& decided = {});
  // Normalised actions to commands [chunk, actions] in the robot's own units.
  std::vector<float> decode(const std::vector<float>& normalised,
                            const std::vector<double>& state) const;

  // All of it in turn: the bits of Python's policy.act for the same noise and prefix.
  std::vector<float> act(const Observation& observation, const std::vector<float>& noise,
                         const ActionPrefix& prefix = {});

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace vlakern
