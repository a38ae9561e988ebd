// The content of config.json: what a policy is made of, as plain records.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "engine/engine_model.h"
#include "policy/json.h"

namespace vlakern {

struct TimeRule {
  std::int64_t buckets = 1000;  // 0: none
  double scale = 1000.0, max_period = 1e4;
  std::optional<double> min_period;
  bool reverse = false;
};

struct ModelConfig {
  ModelSizes sizes;
  double rope_theta;
  TimeRule time;
  bool layer_scale;
  bool prefix_causal, state_block;
  bool zero_unused;  // slots that the robot lacks start at 0 and stay there
  std::vector<std::string> prompt;
  std::string view_open, view_close;
  bool wrap_each;
};

// A run of a native vector and the slots it goes to.
struct Field {
  std::string slot;
  std::int64_t first, width;  // of the native numbers
  std::int64_t start;         // of the slots
  bool rotates;
  double scale, offset;  // slot = scale * native + offset
};

struct Robot {
  std::string name;
  double control_rate;
  std::vector<std::string> views;
  std::int64_t state_width, action_width;
  std::vector<Field> state, action;
  std::vector<std::string> state_names, action_names;  // of the slots' indices
};

enum class Norm : int { kZscore, kQuantile, kMinMax, kBinary, kThreshold, kNone };
enum class Epsilon : int { kVlakern, kOpenpi, kLerobot, kBeingh };
enum class Fit : int { kLetterbox, kOpenpi, kLerobot, kStretch, kCover };
enum class Filter : int { kBilinearAntialias, kBicubicAntialias, kBilinear };
enum class Cleaning : int { kStrip, kUnderscores, kNewlines };

struct Processing {
  std::vector<Norm> state, action;  // of each slot
  Epsilon epsilon = Epsilon::kVlakern;
  std::int64_t execute = 8;
  std::string frame = "native";
  Fit fit = Fit::kLetterbox;
  Filter filter = Filter::kBilinearAntialias;
  std::uint8_t pad = 0;
  std::vector<float> mean, std;
  std::vector<Cleaning> clean;
  std::string ending, bos;
  std::vector<std::string> parts{"{instruction}"};
  std::int64_t most_tokens = 0;                              // 0: no limit
  std::vector<std::pair<std::string, std::string>> cameras;  // another name of a view
  std::vector<std::int64_t> relative;
};

struct PolicyConfig {
  ModelConfig model;
  Robot robot;
  Processing processing;
};

// InputError names the key that is wrong; UnsupportedError what only Python runs.
PolicyConfig read_config(const std::string& directory);

}  // namespace vlakern
