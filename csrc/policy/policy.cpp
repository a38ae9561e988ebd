#include "policy/policy.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <random>

#include "common/thread_pool.h"
#include "engine/engine.h"
#include "policy/action_space.h"
#include "policy/config.h"
#include "policy/images.h"
#include "policy/pack_model.h"
#include "policy/prompt.h"

namespace vlakern {
namespace {

constexpr int kMostWords = 1 << 16;

Tensor vector_of(const std::vector<std::int32_t>& values) {
  const auto count = static_cast<std::int64_t>(values.size());
  return {reinterpret_cast<std::uintptr_t>(values.data()), DType::kI32, 1, {count}, {1}};
}

// How firmly each of `chunk` actions is held: 1 for the first `delay`, 0 from `last` on, and
// between them c (e^c - 1) / (e - 1) with c = (last - i) / (last - delay + 1), Eq. 5 of the paper.
std::vector<float> overlap_mask(int chunk, int delay, int last) {
  std::vector<float> mask;
  for (int i = 0; i < chunk; ++i) {
    const double c = std::clamp(double(last - i) / double(last - delay + 1), 0.0, 1.0);
    const double between = c * std::expm1(c) / std::expm1(1.0);
    mask.push_back(static_cast<float>(i < delay ? 1.0 : i < last ? between : 0.0));
  }
  return mask;
}

bool all_finite(const std::vector<float>& values) {
  return std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(v); });
}

}  // namespace

class Policy::Impl {
 public:
  Impl(const std::string& directory, const PolicyOptions& options)
      : config_(read_config(directory)),
        tokenizer_(directory, config_.model.sizes.vocab),
        space_(directory, config_),
        threads_(options.threads > 0 ? options.threads : default_threads()),
        isa_(select_isa("")) {
    if (options.most_words < 1 || options.most_words > kMostWords) {
      throw InputError("most_words is " + std::to_string(options.most_words) +
                       ", expected 1 to 65536");
    }
    const ModelSizes& s = config_.model.sizes;
    const auto views = static_cast<std::int64_t>(config_.robot.views.size());
    tokens_ = views * s.vision.tokens() + options.most_words + 1;
    const std::int64_t positions = tokens_ + s.chunk;
    packed_ = pack_model(config_.model, directory + "/model.safetensors", options.dtype, positions,
                         threads_);
    EngineModel model =
        engine_model(s, packed_.weights, options.dtype == "fp32" ? "fp32" : "bf16", isa_, threads_);
    const EngineLimits limits{views, 1, tokens_, 1};
    arena_ = Block(static_cast<std::size_t>(Engine::bytes(model, limits)));
    const std::int64_t width = s.kv_width();
    kv_memory_ =
        Block(static_cast<std::size_t>(2 * s.layers * tokens_ * width * dtype_size(model.dtype)));
    kv_ = {kv_memory_.address(),
           model.dtype,
           4,
           {s.layers, 2, tokens_, width},
           {2 * tokens_ * width, tokens_ * width, width, 1}};
    engine_.emplace(std::move(model), limits, isa_, threads_, arena_.address());
    facts_ = {config_.robot.views,
              static_cast<int>(s.vision.image),
              static_cast<int>(s.chunk),
              static_cast<int>(config_.processing.execute),
              static_cast<int>(s.slots),
              static_cast<int>(config_.robot.action_width),
              static_cast<int>(config_.robot.state_width),
              config_.robot.control_rate};
  }

  const PolicyFacts& facts() const { return facts_; }

  std::vector<std::int32_t> tokens(const std::string& instruction) const {
    return prompt_tokens(config_.processing, tokenizer_, instruction);
  }

  std::vector<float> noise(std::uint64_t seed) const {
    std::mt19937_64 generator(seed);
    std::normal_distribution<float> normal;
    std::vector<float> values(chunk_size());
    for (float& value : values) value = normal(generator);
    return values;
  }

  void prefill(const Observation& observation) {
    filled_ = false;
    const std::vector<float> state = space_.encode_state(observation.state);
    const std::int64_t views = prepare(observation);
    const std::vector<std::int32_t> ids =
        observation.tokens.empty() ? tokens(observation.instruction) : observation.tokens;
    rows_ = prefix_rows(config_.model, tokenizer_, ids, views);
    check_rows();
    const auto width = static_cast<std::int64_t>(state.size());
    const PrefixInput in{
        vector_of(rows_.tokens),
        vector_of(rows_.semantic_order),
        {reinterpret_cast<std::uintptr_t>(state.data()), DType::kF32, 2, {1, width}, {width, 1}},
        vector_of(rows_.semantic_rows),
        vector_of(rows_.action_rows),
        vector_of(rows_.order),
        vector_of(rows_.positions),
        vector_of(rows_.cu),
        vector_of(rows_.kv_end),
        kv_};
    engine_->vision(views);
    engine_->prefix(in, views);
    filled_ = true;
  }

  Decided decided(const ActionPrefix& prefix, const std::vector<double>& state) const {
    const auto width = static_cast<std::size_t>(facts_.actions);
    const auto slots = static_cast<std::size_t>(facts_.slots);
    const bool led = prefix.form == PrefixForm::kCheap;
    const std::size_t there = prefix.actions.size() / width;
    const int every = static_cast<int>(std::min(there, static_cast<std::size_t>(facts_.chunk)));
    if (prefix.actions.size() % width != 0 || prefix.frozen < 0 || prefix.frozen > every) {
      throw InputError("the prefix has " + std::to_string(prefix.actions.size()) + " numbers and " +
                       std::to_string(prefix.frozen) + " frozen actions, expected rows of " +
                       std::to_string(width) + " and at most as many as there are and a chunk's " +
                       std::to_string(facts_.chunk));
    }
    const auto known = static_cast<std::ptrdiff_t>(led ? every : prefix.frozen);
    const auto begin = prefix.actions.begin();
    Decided out;
    out.actions = space_.encode({begin, begin + known * facts_.actions}, state);
    out.actions.resize(chunk_size());
    if (!led) {
      out.frozen = prefix.frozen;
      return out;
    }
    const std::vector<float> mask = overlap_mask(facts_.chunk, prefix.frozen, every);
    for (std::size_t i = 0; i < chunk_size(); ++i) {
      out.weights.push_back(mask[i / slots] * static_cast<float>(space_.action_mask()[i % slots]));
    }
    return out;
  }

  std::vector<float> integrate(const std::vector<float>& noise, const Decided& decided) {
    if (!filled_) throw InputError("integrate needs a prefix; call prefill first");
    if (noise.size() != chunk_size() || !all_finite(noise)) {
      throw InputError("noise has " + std::to_string(noise.size()) + " numbers, expected " +
                       std::to_string(chunk_size()) + " finite ones");
    }
    check(decided);
    std::vector<float> x = noise;
    const std::vector<std::uint8_t>& mask = space_.action_mask();
    const auto slots = static_cast<std::int64_t>(facts_.slots);
    IntegrateInput in{chunk_of(x), vector_of(zero_), vector_of(rows_.cu), kv_, {}, {}, {}, {}};
    if (config_.model.zero_unused) {
      for (std::size_t i = 0; i < x.size(); ++i) x[i] *= mask[i % mask.size()];
      in.slot_mask = Tensor{
          reinterpret_cast<std::uintptr_t>(mask.data()), DType::kU8, 2, {1, slots}, {slots, 1}};
    }
    const std::vector<std::int32_t> length{decided.frozen};
    if (decided.frozen > 0) {
      in.frozen = chunk_of(decided.actions);
      in.frozen_len = vector_of(length);
    }
    if (!decided.weights.empty()) {
      in.guidance = Guidance{chunk_of(decided.actions), chunk_of(decided.weights), decided.most};
    }
    engine_->integrate(in);
    return x;
  }

  std::vector<float> decode(const std::vector<float>& chunk,
                            const std::vector<double>& state) const {
    return space_.decode(chunk, state);
  }

 private:
  std::size_t chunk_size() const {
    return static_cast<std::size_t>(facts_.chunk) * static_cast<std::size_t>(facts_.slots);
  }

  Tensor chunk_of(const std::vector<float>& values) const {
    const std::int64_t chunk = facts_.chunk, slots = facts_.slots;
    return {reinterpret_cast<std::uintptr_t>(values.data()),
            DType::kF32,
            3,
            {1, chunk, slots},
            {chunk * slots, slots, 1}};
  }

  void check(const Decided& d) const {
    const bool used = d.frozen != 0 || !d.weights.empty();
    if (d.frozen < 0 || d.frozen > facts_.chunk ||
        (used && (d.actions.size() != chunk_size() || !all_finite(d.actions)))) {
      throw InputError(std::to_string(d.frozen) + " frozen positions of " +
                       std::to_string(d.actions.size()) + " decided numbers; expected up to " +
                       std::to_string(facts_.chunk) + " of " + std::to_string(chunk_size()) +
                       " finite ones");
    }
    const auto valid = [](float w) { return w >= 0 && w <= 1; };
    if (!d.weights.empty() && (d.weights.size() != chunk_size() ||
                               !std::all_of(d.weights.begin(), d.weights.end(), valid))) {
      throw InputError("found " + std::to_string(d.weights.size()) +
                       " weights of guidance, expected none or " + std::to_string(chunk_size()) +
                       " from 0 to 1");
    }
    if (!(d.most >= 0 && std::isfinite(d.most))) {
      throw InputError("guidance is at most " + std::to_string(d.most) +
                       ", expected a number of 0 or more");
    }
  }

  // The pixels of all images in the policy's order; how many there are.
  std::int64_t prepare(const Observation& observation) {
    std::map<std::string, const Image*> seen;
    for (const auto& [name, image] : observation.images) {
      const std::string view = view_of(name);
      if (image.pixels == nullptr || image.height < 1 || image.width < 1 ||
          (image.stride != 0 && image.stride < 3 * std::ptrdiff_t{image.width})) {
        throw InputError("the image of view '" + name + "' has no pixels, expected uint8 RGB");
      }
      if (!seen.emplace(view, &image).second) {
        throw InputError("the observation has two images of view '" + view + "'; give one");
      }
    }
    if (seen.empty()) throw InputError("the observation has no image; give at least one view");
    const VisionSizes& v = config_.model.sizes.vision;
    const Tensor all = engine_->patches(static_cast<std::int64_t>(seen.size()));
    std::int64_t at = 0;
    for (const std::string& view : config_.robot.views) {
      const auto found = seen.find(view);
      if (found == seen.end()) continue;
      Tensor out = all;
      out.data += static_cast<std::uintptr_t>(at++ * all.stride[0] * dtype_size(all.dtype));
      out.shape[0] = 1;
      const Image& image = *found->second;
      const std::int64_t stride = image.stride != 0 ? image.stride : 3 * image.width;
      prepare_image(image.pixels, image.height, image.width, stride, config_.processing, v.image,
                    v.stem.empty() ? v.patch : 1, out, threads_);
    }
    return at;
  }

  std::string view_of(const std::string& name) const {
    const auto& views = config_.robot.views;
    if (std::find(views.begin(), views.end(), name) != views.end()) return name;
    for (const auto& [called, view] : config_.processing.cameras) {
      if (called == name) return view;
    }
    std::string known;
    for (const std::string& view : views) known += (known.empty() ? "" : ", ") + view;
    throw InputError("view '" + name + "' is unknown to the policy; its views are " + known);
  }

  void check_rows() const {
    const auto rows = static_cast<std::int64_t>(rows_.positions.size());
    if (rows > tokens_) {
      throw InputError("the prefix has " + std::to_string(rows) + " tokens, there is room for " +
                       std::to_string(tokens_) + "; load the policy with more most_words");
    }
    for (const std::int32_t id : rows_.tokens) {
      if (id < 0 || id >= config_.model.sizes.vocab) {
        throw InputError("token id " + std::to_string(id) + " is not in the policy's vocabulary");
      }
    }
  }

  PolicyConfig config_;
  Tokenizer tokenizer_;
  ActionSpace space_;
  int threads_;
  Isa isa_;
  std::int64_t tokens_ = 0;
  PackedModel packed_;
  Block arena_, kv_memory_;
  Tensor kv_;
  std::optional<Engine> engine_;
  PolicyFacts facts_;
  PrefixRows rows_;
  const std::vector<std::int32_t> zero_{0};
  bool filled_ = false;
};

Policy::Policy(const std::string& directory, const PolicyOptions& options)
    : impl_(std::make_unique<Impl>(directory, options)) {}
Policy::~Policy() = default;
Policy::Policy(Policy&&) noexcept = default;
Policy& Policy::operator=(Policy&&) noexcept = default;

const PolicyFacts& Policy::facts() const { return impl_->facts(); }

std::vector<std::int32_t> Policy::tokens(const std::string& instruction) const {
  return impl_->tokens(instruction);
}

std::vector<float> Policy::noise(std::uint64_t seed) const { return impl_->noise(seed); }

void Policy::prefill(const Observation& observation) { impl_->prefill(observation); }

Decided Policy::decided(const ActionPrefix& prefix, const std::vector<double>& state) const {
  return impl_->decided(prefix, state);
}

std::vector<float> Policy::integrate(const std::vector<float>& noise, const Decided& decided) {
  return impl_->integrate(noise, decided);
}

std::vector<float> Policy::decode(const std::vector<float>& normalised,
                                  const std::vector<double>& state) const {
  return impl_->decode(normalised, state);
}

std::vector<float> Policy::act(const Observation& observation, const std::vector<float>& noise,
                               const ActionPrefix& prefix) {
  const Decided known = decided(prefix, observation.state);
  prefill(observation);
  return decode(integrate(noise, known), observation.state);
}

}  // namespace vlakern
