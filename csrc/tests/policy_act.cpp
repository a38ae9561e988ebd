// Noise and an observation from files to actions, for comparison with Python:
//   policy_act DIRECTORY DTYPE INSTRUCTION STATE_AND_NOISE OUT [VIEW HEIGHT WIDTH PIXELS]...
// STATE_AND_NOISE holds the state in double, then the noise in float; after that there may be a
// prefix: its form and its number of frozen actions in int32, then its actions in float. OUT gets
// actions in float.
// Without OUT's name it prints the instruction's token ids. Errors are one line, exit code 1.
#include <vlakern/policy/policy.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <fstream>
#include <iterator>
#include <list>
#include <string>
#include <vector>

namespace {

std::vector<char> content(const char* path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

void run(int count, char** words) {
  vlakern::PolicyOptions options;
  options.dtype = words[2];
  vlakern::Policy policy(words[1], options);
  vlakern::Observation observation;
  observation.instruction = words[3];
  if (count < 6) {
    for (const auto id : policy.tokens(words[3])) std::printf("%d ", id);
    return;
  }
  const vlakern::PolicyFacts& facts = policy.facts();
  const std::vector<char> given = content(words[4]);
  observation.state.resize(static_cast<std::size_t>(facts.states));
  std::vector<float> noise(static_cast<std::size_t>(facts.chunk * facts.slots));
  const std::size_t states = observation.state.size() * sizeof(double);
  const std::size_t least = states + noise.size() * sizeof(float);
  if (given.size() < least) std::abort();
  std::memcpy(observation.state.data(), given.data(), states);
  std::memcpy(noise.data(), given.data() + states, noise.size() * sizeof(float));
  vlakern::ActionPrefix prefix;
  if (given.size() > least) {
    std::int32_t facts_of_it[2];
    std::memcpy(facts_of_it, given.data() + least, sizeof(facts_of_it));
    prefix.form = static_cast<vlakern::PrefixForm>(facts_of_it[0]);
    prefix.frozen = facts_of_it[1];
    prefix.actions.resize((given.size() - least - sizeof(facts_of_it)) / sizeof(float));
    std::memcpy(prefix.actions.data(), given.data() + least + sizeof(facts_of_it),
                prefix.actions.size() * sizeof(float));
  }
  std::list<std::vector<char>> pixels;
  for (int i = 6; i + 3 < count; i += 4) {
    pixels.push_back(content(words[i + 3]));
    observation.images[words[i]] = {reinterpret_cast<const std::uint8_t*>(pixels.back().data()),
                                    std::atoi(words[i + 1]), std::atoi(words[i + 2])};
  }
  const std::vector<float> actions = policy.act(observation, noise, prefix);
  std::ofstream(words[5], std::ios::binary)
      .write(reinterpret_cast<const char*>(actions.data()),
             static_cast<std::streamsize>(actions.size() * sizeof(float)));
}

}  // namespace

int main(int count, char** words) {
  try {
    run(count, words);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
