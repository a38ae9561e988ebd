// Between a robot's numbers and a policy's: normalised states, and commands from chunks.
#pragma once

#include <string>
#include <vector>

#include "policy/config.h"

namespace vlakern {

class ActionSpace {
 public:
  // Reads stats.json. InputError: it does not fit config.json.
  ActionSpace(const std::string& directory, const PolicyConfig& config);

  // Native numbers to normalised slots. InputError: another width, or a number that is not finite.
  std::vector<float> encode_state(const std::vector<double>& state) const;
  // Commands [steps, actions] to normalised slots [steps, slots], seen from a state. InputError:
  // another width, a number that is not finite or that the statistics do not take.
  std::vector<float> encode(const std::vector<float>& commands,
                            const std::vector<double>& state) const;
  // Normalised chunks [chunk, slots] to commands [chunk, actions]. InputError: a command that is
  // not finite.
  std::vector<float> decode(const std::vector<float>& chunk,
                            const std::vector<double>& state) const;
  // Of each slot: 1 where the robot fills it.
  const std::vector<std::uint8_t>& action_mask() const { return action_mask_; }

 private:
  // encode(x) = (x - origin) / divisor - shift; decode(x) = x * scale + offset.
  struct Map {
    double origin = 0.0, divisor = 1.0, shift = 0.0, scale = 1.0, offset = 0.0;
    double low = 0.0, high = 0.0;  // the values of a binary slot
    bool binary = false, threshold = false;
  };
  static float normalised(const Map& map, double value, const std::string& what);
  static std::vector<Map> maps(const Json& stats, const std::vector<std::string>& names,
                               const std::vector<Norm>& norms, Epsilon epsilon,
                               const std::vector<std::uint8_t>& filled);
  static std::vector<std::uint8_t> filled(const std::vector<Field>& fields, std::size_t slots);

  Robot robot_;
  std::int64_t slots_;
  std::vector<std::int64_t> relative_;
  std::vector<std::uint8_t> action_mask_;
  std::vector<Map> state_, action_;
};

}  // namespace vlakern
