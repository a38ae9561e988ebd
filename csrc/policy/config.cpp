#include "policy/config.h"

#include <algorithm>
#include <cmath>

#include "common/error.h"
#include "policy/bytes.h"

namespace vlakern {
namespace {

constexpr std::size_t kMostBytes = 1 << 20;
constexpr std::int64_t kLayers = 1 << 10, kHeads = 1 << 12, kPixels = 1 << 13, kWidth = 1 << 16;
constexpr std::int64_t kFormat = 2;
constexpr double kPi = 3.14159265358979323846;

[[noreturn]] void unsupported(const std::string& what) {
  throw UnsupportedError(what + " is not in the C++ face; run this policy from Python");
}

std::int64_t count_of(const Json& json, const char* key, std::int64_t most,
                      std::int64_t least = 1) {
  return json.at(key).count(least, most);
}

bool flag_of(const Json& json, const char* key, bool otherwise) {
  const Json* found = json.find(key);
  return found == nullptr ? otherwise : found->boolean();
}

double positive(const Json& json, const char* key, double otherwise) {
  const Json* found = json.find(key);
  if (found == nullptr) return otherwise;
  if (!(found->real() > 0.0)) found->fail("a number above 0");
  return found->number;
}

int choice_of(const Json& json, const char* key, const std::vector<std::string>& known,
              int otherwise = 0) {
  const Json* found = json.find(key);
  return found == nullptr ? otherwise : found->choice(known);
}

std::string words_of(const Json& json, const char* key, const std::string& otherwise = "") {
  const Json* found = json.find(key);
  return found == nullptr ? otherwise : found->words();
}

bool is_null(const Json* json) { return json == nullptr || json->kind == Json::Kind::kNull; }

void read_vision(const Json& v, ModelConfig& model) {
  v.only({"image_size", "patch_size", "hidden", "layers", "heads", "mlp", "stem", "class_token",
          "layer_scale", "pixel_shuffle", "eps", "activation", "final_norm", "connector"});
  const Json* shuffle = v.find("pixel_shuffle");
  VisionSizes& s = model.sizes.vision;
  s.image = count_of(v, "image_size", kPixels);
  s.patch = count_of(v, "patch_size", kPixels);
  s.hidden = count_of(v, "hidden", kWidth);
  s.layers = count_of(v, "layers", kLayers);
  s.heads = count_of(v, "heads", kWidth);
  s.mlp = count_of(v, "mlp", kWidth);
  s.shuffle = shuffle == nullptr ? 2 : shuffle->count(1, kPixels);
  if (const Json* stem = v.find("stem")) {
    for (const Json& width : stem->list()) s.stem.push_back(width.count(1, kWidth));
  }
  if (s.stem.size() > 16) v.fail("a stem of at most 16 convolutions");
  s.class_token = flag_of(v, "class_token", false);
  s.eps = static_cast<float>(positive(v, "eps", 1e-6));
  s.gelu_tanh = choice_of(v, "activation", {"gelu", "gelu_tanh"}) == 1;
  s.final_norm = flag_of(v, "final_norm", false);
  s.linear_connector = choice_of(v, "connector", {"mlp", "linear"}) == 1;
  model.layer_scale = !is_null(v.find("layer_scale"));
}

ExpertSizes read_expert(const Json& e) {
  e.only({"hidden", "mlp", "adaptive"});
  if (flag_of(e, "adaptive", false)) unsupported(e.where + ".adaptive");
  return {count_of(e, "hidden", kWidth), count_of(e, "mlp", kWidth)};
}

void read_layers(const Json& m, ModelConfig& model) {
  m.only({"layers", "q_heads", "kv_heads", "head_dim", "semantic", "action", "rope_theta",
          "norm_eps", "qk_norm", "activation", "cross_every"});
  ModelSizes& s = model.sizes;
  s.layers = count_of(m, "layers", kLayers);
  s.heads = count_of(m, "q_heads", kHeads);
  s.groups = count_of(m, "kv_heads", kHeads);
  s.head_dim = count_of(m, "head_dim", kHeads);
  if (s.head_dim % 2 != 0) m.at("head_dim").fail("an even number");
  s.semantic = read_expert(m.at("semantic"));
  s.action = read_expert(m.at("action"));
  if (s.action.hidden % 2 != 0) m.at("action").fail("an even hidden width");
  model.rope_theta = positive(m, "rope_theta", 1e6);
  s.eps = static_cast<float>(positive(m, "norm_eps", 1e-6));
  s.qk_norm = flag_of(m, "qk_norm", true);
  s.gelu_gate = choice_of(m, "activation", {"silu", "gelu_tanh"}) == 1;
  const Json* crosses = m.find("cross_every");
  if (crosses != nullptr && crosses->count(0, s.layers) != 0) unsupported(crosses->where);
}

TimeRule read_time(const Json& t) {
  t.only({"buckets", "scale", "max_period", "reverse", "min_period"});
  TimeRule time;
  if (const Json* buckets = t.find("buckets")) {
    time.buckets = is_null(buckets) ? 0 : buckets->count(1, 1 << 30);
  }
  time.scale = positive(t, "scale", 1000.0);
  time.max_period = positive(t, "max_period", 1e4);
  time.reverse = flag_of(t, "reverse", false);
  if (!is_null(t.find("min_period"))) time.min_period = positive(t, "min_period", 1.0);
  return time;
}

void read_prompt_order(const Json* p, ModelConfig& model) {
  model.prompt = {"{views}", "{instruction}", "{state}"};
  model.wrap_each = true;
  if (p == nullptr) return;
  p->only({"template", "view_open", "view_close", "wrap_views"});
  if (const Json* parts = p->find("template")) {
    model.prompt.clear();
    for (const Json& part : parts->list()) model.prompt.push_back(part.words());
    for (const char* field : {"{views}", "{state}", "{instruction}"}) {
      if (std::count(model.prompt.begin(), model.prompt.end(), field) != 1) {
        parts->fail("each of {views}, {state} and {instruction} once");
      }
    }
  }
  model.view_open = words_of(*p, "view_open");
  model.view_close = words_of(*p, "view_close");
  model.wrap_each = choice_of(*p, "wrap_views", {"each", "all"}) == 0;
}

void read_mask(const Json* mask, ModelConfig& model) {
  model.prefix_causal = model.sizes.causal_actions = true;
  model.state_block = false;
  if (mask == nullptr) return;
  mask->only({"prefix", "state", "actions"});
  model.prefix_causal = choice_of(*mask, "prefix", {"causal", "full"}) == 0;
  model.state_block = choice_of(*mask, "state", {"inline", "block"}) == 1;
  model.sizes.causal_actions = choice_of(*mask, "actions", {"causal", "full"}) == 0;
}

ModelConfig read_model(const Json& m) {
  m.only({"vision", "mot", "vocab_size", "state_dim", "action_dim", "chunk", "steps", "solver",
          "time", "mask", "prompt", "unused_slots", "state", "state_encoder", "action_decoder",
          "action_encoder"});
  ModelConfig model{};
  ModelSizes& s = model.sizes;
  read_vision(m.at("vision"), model);
  read_layers(m.at("mot"), model);
  s.vocab = count_of(m, "vocab_size", 1 << 24);
  s.state = count_of(m, "state_dim", kWidth);
  s.slots = count_of(m, "action_dim", kWidth);
  const Json *chunk = m.find("chunk"), *steps = m.find("steps"), *time = m.find("time");
  s.chunk = chunk == nullptr ? 16 : chunk->count(1, kWidth);
  s.steps = steps == nullptr ? 4 : steps->count(1, kWidth);
  s.solver = words_of(m, "solver", "euler");
  choice_of(m, "solver", {"euler", "midpoint", "heun"});
  if (time != nullptr) model.time = read_time(*time);
  read_mask(m.find("mask"), model);
  read_prompt_order(m.find("prompt"), model);
  model.zero_unused = choice_of(m, "unused_slots", {"noise", "zero"}) == 1;
  const int owner = choice_of(m, "state", {"action", "semantic", "words"});
  if (owner == 2) unsupported("a state that the prompt says in words");
  s.owner = static_cast<StateOwner>(owner);
  s.linear_state = choice_of(m, "state_encoder", {"mlp", "linear"}) == 1;
  s.linear_out = choice_of(m, "action_decoder", {"mlp", "linear"}) == 1;
  if (choice_of(m, "action_encoder", {"mixed", "plain"}) == 1)
    unsupported("a plain action encoder");
  if (s.vision.final_norm && !s.vision.linear_connector) {
    unsupported("vision.final_norm before a connector with a norm");
  }
  const VisionSizes& v = s.vision;
  if (v.hidden % v.heads != 0 || s.heads % s.groups != 0 || v.image % v.patch != 0 ||
      v.grid() % v.shuffle != 0 || v.patch_side() << v.stem.size() != v.patch) {
    m.fail("heads, groups, patches and a pixel shuffle that divide what they part");
  }
  return model;
}

std::vector<std::string> slot_names(const Json& map, std::int64_t width) {
  if (map.at("width").count(1, kWidth) != width) {
    map.fail("as many slots as the model has, " + std::to_string(width));
  }
  std::vector<std::string> names;
  for (std::int64_t i = 0; i < width; ++i) names.push_back("unnamed." + std::to_string(i));
  for (const Json& slot : map.at("slots").list()) {
    const std::int64_t start = slot.at("start").count(0, width - 1);
    const std::int64_t stop = slot.at("stop").count(start + 1, width);
    for (std::int64_t i = start; i < stop; ++i) {
      names[static_cast<std::size_t>(i)] =
          slot.at("name").words() + (stop - start == 1 ? "" : "." + std::to_string(i - start));
    }
  }
  return names;
}

const Json& slot_of(const Json& map, const Json& name) {
  for (const Json& slot : map.at("slots").list()) {
    if (slot.at("name").words() == name.words()) return slot;
  }
  name.fail("a slot of the map " + map.at("name").words());
}

Field read_field(const Json& f, const Json& map, std::int64_t native_width) {
  f.only({"slot", "native", "rotation", "closed", "open", "degrees"});
  const Json& slot = slot_of(map, f.at("slot"));
  const auto& native = f.at("native").list();
  if (native.size() != 2) f.at("native").fail("[start, stop]");
  const std::int64_t first = native[0].count(0, native_width - 1);
  const std::int64_t stop = native[1].count(first + 1, native_width);
  const std::int64_t start = slot.at("start").integer, width = slot.at("stop").integer - start;
  Field field{f.at("slot").text, first, stop - first, start, false, 1.0, 0.0};
  field.rotates = !is_null(f.find("rotation"));
  if (field.width > width) f.at("native").fail("at most as many numbers as the slot has");
  if (flag_of(f, "degrees", false)) {
    field.scale = kPi / 180.0;
  } else if (!is_null(f.find("closed")) && !is_null(f.find("open"))) {
    const double closed = f.at("closed").real(), open = f.at("open").real();
    if (closed == open) f.at("open").fail("another number than closed");
    field.scale = 1.0 / (open - closed);
    field.offset = -closed * field.scale;
  }
  return field;
}

Robot read_robot(const Json& r, const Json& state_map, const Json& action_map,
                 const ModelSizes& s) {
  Robot robot{r.at("name").words(), positive(r, "control_rate", 0.0), {}, 0, 0, {}, {}, {}, {}};
  for (const Json& view : r.at("views").list()) robot.views.push_back(view.words());
  if (robot.views.empty() || !(robot.control_rate > 0.0)) r.fail("views and a control_rate");
  robot.state_width = count_of(r, "state_width", kWidth, 0);
  robot.action_width = count_of(r, "action_width", kWidth);
  robot.state_names = slot_names(state_map, s.state);
  robot.action_names = slot_names(action_map, s.slots);
  for (const Json& f : r.at("state").list()) {
    robot.state.push_back(read_field(f, state_map, robot.state_width));
  }
  std::int64_t named = 0;
  for (const Json& f : r.at("action").list()) {
    robot.action.push_back(read_field(f, action_map, robot.action_width));
    named += robot.action.back().width;
  }
  if (named != robot.action_width) r.at("action").fail("every number of a command in one field");
  for (const Field& field : robot.state) {
    if (field.rotates) unsupported("a rotation in the state (" + field.slot + ")");
  }
  return robot;
}

const std::vector<std::string>& norm_names() {
  static const std::vector<std::string> names{"zscore", "quantile",  "min_max",
                                              "binary", "threshold", "none"};
  return names;
}

std::vector<Norm> read_norms(const Json& p, const std::string& key, const Json& map,
                             std::int64_t width) {
  const int all = choice_of(p, key.c_str(), norm_names());
  std::vector<Norm> norms(static_cast<std::size_t>(width), static_cast<Norm>(all));
  const Json* exceptions = p.find(key + "_slots");
  if (exceptions == nullptr) return norms;
  for (const Json& one : exceptions->list()) {
    const Json& slot = slot_of(map, one.at("slot"));
    const auto norm = static_cast<Norm>(one.at("mode").choice(norm_names()));
    for (std::int64_t i = slot.at("start").integer; i < slot.at("stop").integer; ++i) {
      norms[static_cast<std::size_t>(i)] = norm;
    }
  }
  return norms;
}

void read_images(const Json& image, Processing& out) {
  image.only({"fit", "filter", "pad", "mean", "std"});
  out.fit = static_cast<Fit>(
      choice_of(image, "fit", {"letterbox", "openpi", "lerobot", "stretch", "cover"}));
  out.filter = static_cast<Filter>(
      choice_of(image, "filter", {"bilinear_antialias", "bicubic_antialias", "bilinear"}));
  if (const Json* pad = image.find("pad")) {
    if (pad->count(-255, 255) < 0) unsupported("a border below 0 (" + pad->where + ")");
    out.pad = static_cast<std::uint8_t>(pad->integer);
  }
  for (auto* one : {&out.mean, &out.std}) {
    const Json* found = image.find(one == &out.mean ? "mean" : "std");
    if (found == nullptr) continue;
    for (const Json& n : found->list()) one->push_back(static_cast<float>(n.real()));
  }
  if (out.mean.size() != out.std.size() || (!out.mean.empty() && out.mean.size() != 3) ||
      std::any_of(out.std.begin(), out.std.end(), [](float s) { return !(s > 0.0f); })) {
    image.fail("a mean and a std above 0 for each of three channels, or neither");
  }
}

void read_prompt_rule(const Json& prompt, Processing& out) {
  prompt.only({"clean", "ending", "parts", "bos", "most_tokens", "bins", "numbers"});
  if (const Json* clean = prompt.find("clean")) {
    for (const Json& one : clean->list()) {
      out.clean.push_back(static_cast<Cleaning>(one.choice({"strip", "underscores", "newlines"})));
    }
  }
  out.ending = words_of(prompt, "ending");
  out.bos = words_of(prompt, "bos");
  if (!is_null(prompt.find("most_tokens"))) {
    out.most_tokens = count_of(prompt, "most_tokens", kWidth);
  }
  if (const Json* parts = prompt.find("parts")) {
    out.parts.clear();
    for (const Json& part : parts->list()) {
      if (part.words().find("{state}") != std::string::npos) unsupported("a state in the prompt");
      out.parts.push_back(part.text);
    }
  }
}

Processing read_processing(const Json& p, const Json& state_map, const Json& action_map,
                           const ModelSizes& s) {
  p.only({"state", "action", "execute", "frame", "state_slots", "action_slots", "epsilon", "image",
          "prompt", "cameras", "relative"});
  Processing out;
  out.state = read_norms(p, "state", state_map, s.state);
  out.action = read_norms(p, "action", action_map, s.slots);
  out.epsilon =
      static_cast<Epsilon>(choice_of(p, "epsilon", {"vlakern", "openpi", "lerobot", "beingh"}));
  if (out.epsilon == Epsilon::kBeingh) unsupported("Being-H's normalisation");
  if (const Json* execute = p.find("execute")) out.execute = execute->count(1, s.chunk);
  out.frame = words_of(p, "frame", "native");
  if (out.frame != "native") unsupported("the action frame " + out.frame);
  if (const Json* image = p.find("image")) read_images(*image, out);
  if (const Json* prompt = p.find("prompt")) read_prompt_rule(*prompt, out);
  if (const Json* cameras = p.find("cameras")) {
    for (const Json& one : cameras->list()) {
      out.cameras.emplace_back(one.at("called").words(), one.at("view").words());
    }
  }
  if (const Json* relative = p.find("relative")) {
    for (const Json& one : relative->list()) out.relative.push_back(one.count(0, kWidth));
  }
  return out;
}

}  // namespace

PolicyConfig read_config(const std::string& directory) {
  const Json json = parse_json(read_file(directory + "/config.json", kMostBytes), "config.json");
  if (json.find("family") == nullptr || json.at("family").words() != "vlakern") {
    unsupported("a directory of another family; `vlakern convert` makes a native one, which");
  }
  if (json.at("format").count(0, 1 << 20) != kFormat) {
    json.at("format").fail("2, the format that this version reads");
  }
  json.only({"family", "format", "model", "embodiment", "state_map", "action_map", "processing"});
  const Json &state = json.at("state_map"), &action = json.at("action_map");
  PolicyConfig config;
  config.model = read_model(json.at("model"));
  const ModelSizes& sizes = config.model.sizes;
  config.robot = read_robot(json.at("embodiment"), state, action, sizes);
  config.processing = read_processing(json.at("processing"), state, action, sizes);
  for (const std::int64_t index : config.processing.relative) {
    if (index >= std::min(config.robot.state_width, config.robot.action_width)) {
      json.at("processing").fail("relative numbers that state and command share");
    }
  }
  return config;
}

}  // namespace vlakern
