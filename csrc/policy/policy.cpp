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

  std::vector<float> integrate(const std::vector<float>& noise, const std::vector<float>& decided,
                               int frozen) {
    if (!filled_) throw InputError("integrate needs a prefix; call prefill first");
    if (noise.size() != chunk_size() || !all_finite(noise)) {
      throw InputError("noise has " + std::to_string(noise.size()) + " numbers, expected " +
                       std::to_string(chunk_size()) + " finite ones");
    }
    if (frozen < 0 || frozen > facts_.chunk ||
        (frozen > 0 && (decided.size() != chunk_size() || !all_finite(decided)))) {
      throw InputError(std::to_string(frozen) + " frozen positions of " +
                       std::to_string(decided.size()) + " decided numbers; expected up to " +
                       std::to_string(facts_.chunk) + " of " + std::to_string(chunk_size()) +
                       " finite ones");
    }
    std::vector<float> x = noise;
    const std::vector<std::uint8_t>& mask = space_.action_mask();
    const auto slots = static_cast<std::int64_t>(facts_.slots);
    IntegrateInput in{chunk_of(x), vector_of(zero_), vector_of(rows_.cu), kv_, {}, {}, {}, {}};
    if (config_.model.zero_unused) {
      for (std::size_t i = 0; i < x.size(); ++i) x[i] *= mask[i % mask.size()];
      in.slot_mask = Tensor{
          reinterpret_cast<std::uintptr_t>(mask.data()), DType::kU8, 2, {1, slots}, {slots, 1}};
    }
    const std::vector<std::int32_t> length{frozen};
    if (frozen > 0) {
      in.frozen = chunk_of(decided);
      in.frozen_len = vector_of(length);
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

std::vector<float> Policy::integrate(const std::vector<float>& noise,
                                     const std::vector<float>& decided, int frozen) {
  return impl_->integrate(noise, decided, frozen);
}

std::vector<float> Policy::decode(const std::vector<float>& normalised,
                                  const std::vector<double>& state) const {
  return impl_->decode(normalised, state);
}

std::vector<float> Policy::act(const Observation& observation, const std::vector<float>& noise) {
  prefill(observation);
  return decode(integrate(noise), observation.state);
}

}  // namespace vlakern
