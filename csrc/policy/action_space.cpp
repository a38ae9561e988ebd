#include "policy/action_space.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "action_decode/action_decode.h"
#include "common/error.h"
#include "policy/bytes.h"

namespace vlakern {
namespace {

constexpr std::size_t kMostBytes = 1 << 20;
constexpr double kSmallestScale = 1e-3;    // of a slot that never moves
constexpr double kBinaryTolerance = 1e-3;  // of the distance between the two values
constexpr double kOpenpiEpsilon = 1e-6, kLerobotEpsilon = 1e-8;

// One slot's numbers in stats.json.
struct Stats {
  double mean, std, min, max, q01, q99;
};

std::vector<Stats> read_stats(const Json& json, std::size_t width) {
  json.only({"mean", "std", "min", "max", "q01", "q99", "names", "present"});
  std::vector<Stats> stats(width);
  const std::array<std::pair<const char*, double Stats::*>, 6> parts{{{"mean", &Stats::mean},
                                                                      {"std", &Stats::std},
                                                                      {"min", &Stats::min},
                                                                      {"max", &Stats::max},
                                                                      {"q01", &Stats::q01},
                                                                      {"q99", &Stats::q99}}};
  for (const auto& [key, part] : parts) {
    const Json& numbers = json.at(key);
    if (numbers.list().size() != width) {
      numbers.fail(std::to_string(width) + " numbers, as many as the model has slots");
    }
    for (std::size_t i = 0; i < width; ++i) stats[i].*part = numbers.items[i].real();
  }
  return stats;
}

bool is_present(const Json& json, std::size_t i, std::size_t width) {
  const Json* present = json.find("present");
  if (present == nullptr || present->list().empty()) return true;
  if (present->items.size() != width) present->fail("as many as there are slots");
  return present->items[i].boolean();
}

void check_names(const Json& json, const std::vector<std::string>& names) {
  const auto& found = json.at("names").list();
  if (found.size() != names.size()) json.at("names").fail("a name for each of the model's slots");
  for (std::size_t i = 0; i < names.size(); ++i) {
    if (found[i].words() != names[i]) {
      found[i].fail("'" + names[i] + "': the statistics were made for another slot map");
    }
  }
}

Tensor tensor_of(const void* at, DType dtype, std::vector<std::int64_t> shape) {
  Tensor t{reinterpret_cast<std::uintptr_t>(at), dtype, static_cast<int>(shape.size()), {}, {}};
  std::int64_t stride = 1;
  for (std::size_t i = shape.size(); i-- > 0;) {
    t.shape[i] = shape[i];
    t.stride[i] = stride;
    stride *= shape[i];
  }
  return t;
}

}  // namespace

std::vector<std::uint8_t> ActionSpace::filled(const std::vector<Field>& fields, std::size_t slots) {
  std::vector<std::uint8_t> mask(slots, 0);
  for (const Field& field : fields) {
    const auto begin = mask.begin() + field.start;
    std::fill(begin, begin + field.width, std::uint8_t{1});
  }
  return mask;
}

std::vector<ActionSpace::Map> ActionSpace::maps(const Json& json,
                                                const std::vector<std::string>& names,
                                                const std::vector<Norm>& norms, Epsilon epsilon,
                                                const std::vector<std::uint8_t>& filled) {
  const std::vector<Stats> stats = read_stats(json, names.size());
  check_names(json, names);
  std::vector<Map> all(names.size());
  for (std::size_t i = 0; i < names.size(); ++i) {
    const Stats& s = stats[i];
    Map& map = all[i];
    if (filled[i] == 0) continue;
    if (!is_present(json, i, names.size())) {
      json.fail("statistics of slot '" + names[i] + "', which the robot has");
    }
    const auto range = [&](double low, double high) {
      const double span = high - low;
      if (span < 0.0) json.fail("a range that is not negative of slot '" + names[i] + "'");
      map.scale = std::max(span / 2, kSmallestScale);
      if (epsilon == Epsilon::kOpenpi) map.scale = (span + kOpenpiEpsilon) / 2;
      if (epsilon == Epsilon::kLerobot) map.scale = (span == 0.0 ? kLerobotEpsilon : span) / 2;
      const bool centred = epsilon == Epsilon::kVlakern;
      map.divisor = map.scale;
      map.origin = centred ? low + span / 2 : low;
      map.shift = centred ? 0.0 : 1.0;
      map.offset = centred ? map.origin : low + map.scale;
    };
    switch (norms[i]) {
      case Norm::kZscore:
        if (s.std < 0.0) json.fail("a deviation that is not negative of slot '" + names[i] + "'");
        map.origin = map.offset = s.mean;
        map.divisor = epsilon == Epsilon::kVlakern  ? std::max(s.std, kSmallestScale)
                      : epsilon == Epsilon::kOpenpi ? s.std + kOpenpiEpsilon
                                                    : s.std + kLerobotEpsilon;
        map.scale = epsilon == Epsilon::kLerobot ? s.std : map.divisor;
        break;
      case Norm::kQuantile:
        range(s.q01, s.q99);
        break;
      case Norm::kMinMax:
        range(s.min, s.max);
        break;
      case Norm::kBinary:
        if (!(s.min < s.max)) json.fail("two values of the binary slot '" + names[i] + "'");
        map.binary = true;
        map.low = s.min;
        map.high = s.max;
        map.scale = (s.max - s.min) / 2;
        map.offset = s.min + map.scale;
        break;
      case Norm::kThreshold:
        map.threshold = true;
        break;
      case Norm::kNone:
        break;
    }
    if (!std::isfinite(map.scale) || !std::isfinite(map.offset)) {
      json.fail("a range inside fp64 of slot '" + names[i] + "'");
    }
  }
  return all;
}

ActionSpace::ActionSpace(const std::string& directory, const PolicyConfig& config)
    : robot_(config.robot),
      slots_(config.model.sizes.slots),
      relative_(config.processing.relative),
      action_mask_(filled(robot_.action, robot_.action_names.size())) {
  const Json json = parse_json(read_file(directory + "/stats.json", kMostBytes), "stats.json");
  json.only({"frame", "state", "action"});
  if (json.at("frame").words() != config.processing.frame) {
    json.at("frame").fail("'" + config.processing.frame + "', the frame in config.json");
  }
  const Processing& p = config.processing;
  state_ = maps(json.at("state"), robot_.state_names, p.state, p.epsilon,
                filled(robot_.state, robot_.state_names.size()));
  action_ = maps(json.at("action"), robot_.action_names, p.action, p.epsilon, action_mask_);
}

float ActionSpace::normalised(const Map& map, double wide, const std::string& what) {
  double value = (wide - map.origin) / map.divisor - map.shift;
  if (map.threshold) value = value > 0.5 ? 1.0 : 0.0;
  if (map.binary) {
    const double near = kBinaryTolerance * (map.high - map.low);
    const bool low = std::fabs(wide - map.low) <= near;
    if (!low && std::fabs(wide - map.high) > near) {
      throw InputError(what + " has neither of its two values");
    }
    value = low ? -1.0 : 1.0;
  }
  if (!(std::fabs(value) <= static_cast<double>(std::numeric_limits<float>::max()))) {
    throw InputError(what + " is too large for the policy's statistics");
  }
  return static_cast<float>(value);
}

std::vector<float> ActionSpace::encode_state(const std::vector<double>& state) const {
  if (static_cast<std::int64_t>(state.size()) != robot_.state_width) {
    throw InputError("the state has " + std::to_string(state.size()) + " numbers, " + robot_.name +
                     " has " + std::to_string(robot_.state_width));
  }
  std::vector<double> wide(state_.size(), 0.0);
  for (const Field& field : robot_.state) {
    for (std::int64_t i = 0; i < field.width; ++i) {
      const double value = state[static_cast<std::size_t>(field.first + i)];
      if (!std::isfinite(value)) {
        throw InputError("state number " + std::to_string(field.first + i) + " (slot " +
                         field.slot + ") is not finite; check the sensor");
      }
      wide[static_cast<std::size_t>(field.start + i)] = value * field.scale + field.offset;
    }
  }
  std::vector<float> out;
  for (std::size_t i = 0; i < wide.size(); ++i) {
    out.push_back(normalised(state_[i], wide[i], "state slot " + robot_.state_names[i]));
  }
  return out;
}

std::vector<float> ActionSpace::encode(const std::vector<float>& commands,
                                       const std::vector<double>& state) const {
  const auto width = static_cast<std::size_t>(robot_.action_width);
  if (commands.size() % width != 0 ||
      static_cast<std::int64_t>(state.size()) != robot_.state_width) {
    throw InputError("commands have rows of " + std::to_string(width) +
                     " numbers and are seen from a state of " + std::to_string(robot_.state_width) +
                     ", found " + std::to_string(commands.size()) + " and " +
                     std::to_string(state.size()));
  }
  const std::size_t steps = commands.size() / width, slots = static_cast<std::size_t>(slots_);
  std::vector<float> out(steps * slots);
  for (const Field& field : robot_.action) {
    for (std::size_t i = 0; i < steps * static_cast<std::size_t>(field.width); ++i) {
      const std::size_t step = i / static_cast<std::size_t>(field.width);
      const std::size_t place = i % static_cast<std::size_t>(field.width);
      const std::size_t column = static_cast<std::size_t>(field.first) + place;
      const std::size_t slot = static_cast<std::size_t>(field.start) + place;
      auto value = static_cast<double>(commands[step * width + column]);
      if (std::count(relative_.begin(), relative_.end(), static_cast<std::int64_t>(column)) > 0) {
        value -= state[column];
      }
      if (!std::isfinite(value)) {
        throw InputError("action number " + std::to_string(column) + " of step " +
                         std::to_string(step) + " (slot " + field.slot + ") is not finite");
      }
      out[step * slots + slot] =
          normalised(action_[slot], value, "action slot " + robot_.action_names[slot]);
    }
  }
  return out;
}

std::vector<float> ActionSpace::decode(const std::vector<float>& chunk,
                                       const std::vector<double>& state) const {
  const std::int64_t columns = robot_.action_width;
  const std::int64_t steps = static_cast<std::int64_t>(chunk.size()) / slots_;
  if (steps * slots_ != static_cast<std::int64_t>(chunk.size()) ||
      static_cast<std::int64_t>(state.size()) != robot_.state_width) {
    throw InputError("a chunk has rows of " + std::to_string(slots_) +
                     " slots and is decoded beside a state of " +
                     std::to_string(robot_.state_width) + " numbers");
  }
  std::vector<float> scale, offset, affine, commands(static_cast<std::size_t>(steps * columns));
  std::vector<std::int32_t> copies;
  for (const Map& map : action_) {
    scale.push_back(static_cast<float>(map.scale));
    offset.push_back(static_cast<float>(map.offset));
  }
  for (const Field& field : robot_.action) {
    for (std::int64_t i = 0; i < field.width; ++i) {
      const bool binary = action_[static_cast<std::size_t>(field.start + i)].binary;
      copies.insert(copies.end(), {static_cast<std::int32_t>(field.start + i),
                                   static_cast<std::int32_t>(field.first + i), binary ? 1 : 0});
      affine.insert(affine.end(), {1.0f, 0.0f});
    }
  }
  const ActionDecodeTensors t{tensor_of(chunk.data(), DType::kF32, {1, steps, slots_}),
                              tensor_of(scale.data(), DType::kF32, {slots_}),
                              tensor_of(offset.data(), DType::kF32, {slots_}),
                              tensor_of(affine.data(), DType::kF32, {1, 0, 7}),
                              tensor_of(copies.data(), DType::kI32, {columns, 3}),
                              tensor_of(affine.data(), DType::kF32, {columns, 2}),
                              tensor_of(copies.data(), DType::kI32, {0, 6}),
                              tensor_of(commands.data(), DType::kF32, {1, steps, columns})};
  action_decode_cpu(action_decode_params(t, "world_relative"));
  for (const Field& field : robot_.action) {
    for (std::int64_t i = 0; i < field.width * steps; ++i) {
      const std::int64_t column = field.first + i % field.width;
      const auto slot = static_cast<std::size_t>(field.start + i % field.width);
      float& value = commands[static_cast<std::size_t>(i / field.width * columns + column)];
      if (action_[slot].threshold) value = value > 0.5f ? 1.0f : 0.0f;
      if (std::count(relative_.begin(), relative_.end(), column) > 0) {
        value += static_cast<float>(state[static_cast<std::size_t>(column)]);
      }
      // What the network said of a switch is lost in its value.
      const float said = chunk[static_cast<std::size_t>(i / field.width * slots_) + slot];
      if (!std::isfinite(value) || !std::isfinite(said)) {
        throw InputError("predicted action number " + std::to_string(column) + " (slot " +
                         field.slot + ") is not finite; check the model");
      }
    }
  }
  return commands;
}

}  // namespace vlakern
