// Files of a policy directory with random damage: each is read or refused in a sentence, under the
// sanitizers, and nothing else happens. Usage: policy_files_test DIRECTORY SCRATCH COUNT [SEED]
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <random>
#include <string>

#include "common/error.h"
#include "policy/bytes.h"
#include "policy/config.h"
#include "policy/tokenizer.h"
#include "policy/weights_file.h"

namespace {

constexpr std::size_t kMost = 1 << 26;

std::string small_weights() {
  const std::string header =
      R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},)"
      R"("b":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]}})";
  std::string file(8, '\0');
  for (std::size_t i = 0; i < 8; ++i) file[i] = static_cast<char>(header.size() >> (8 * i) & 0xff);
  return file + header + std::string(32, '\x11');
}

std::string damaged(std::string text, std::mt19937_64& random) {
  const auto below = [&random](std::size_t n) { return static_cast<std::size_t>(random() % n); };
  static const std::string kSigns = "0123456789{}[]\",:.-+eE\\u\x80\xff \n";
  for (std::size_t change = 1 + below(3); change > 0 && !text.empty(); --change) {
    const std::size_t at = below(text.size());
    switch (below(5)) {
      case 0:
        text[at] = static_cast<char>(random());
        break;
      case 1:
        text[at] = kSigns[below(kSigns.size())];
        break;
      case 2:
        text.insert(at, std::string(1 + below(40), kSigns[below(kSigns.size())]));
        break;
      case 3:
        text.erase(at, 1 + below(20));
        break;
      default:
        text.resize(at);
    }
  }
  return text;
}

void read(int kind, const std::string& folder) {
  if (kind == 0) {
    vlakern::WeightsFile file(folder + "/model.safetensors");
    file.read("a", {2, 3});
    file.read("b", {4});
    file.check_all_read();
  } else if (kind == 1) {
    vlakern::read_config(folder);
  } else {
    vlakern::Tokenizer(folder, 512).encode("it's 3  pucks!");
  }
}

int run(const std::string& directory, const std::string& scratch, int count, std::uint64_t seed) {
  const char* const names[] = {"model.safetensors", "config.json", "tokenizer.json"};
  const std::string whole[] = {small_weights(),
                               vlakern::read_file(directory + "/config.json", kMost),
                               vlakern::read_file(directory + "/tokenizer.json", kMost)};
  std::mt19937_64 random(seed);
  int passed[3] = {}, refused[3] = {};
  for (int i = 0; i < 3 * count; ++i) {
    const int kind = i % 3;
    // The first of each is whole and must be read.
    const std::string content = i < 3 ? whole[kind] : damaged(whole[kind], random);
    std::ofstream(scratch + "/" + names[kind], std::ios::binary) << content;
    try {
      read(kind, scratch);
      ++passed[kind];
    } catch (const vlakern::InputError& error) {
      if (i < 3) throw;
      ++refused[kind];
    } catch (const vlakern::UnsupportedError& error) {
      if (i < 3) throw;
      ++refused[kind];
    }
  }
  for (int kind = 0; kind < 3; ++kind) {
    std::printf("%s: %d read, %d refused\n", names[kind], passed[kind], refused[kind]);
  }
  return 0;
}

}  // namespace

int main(int count, char** words) {
  if (count < 4) return 2;
  return run(words[1], words[2], std::atoi(words[3]),
             count > 4 ? std::strtoull(words[4], nullptr, 10) : 1);
}
