#include "program.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "fail.h"
#include "json.h"

namespace sparseq::network {
namespace {

constexpr int64_t kMostInstructions = 1 << 14, kMostConstants = 1 << 20;
constexpr int64_t kMost = int64_t{1} << 30;  // of an attribute: products of two stay far inside of int64
constexpr const char* kForms[] = {"image", "pixels", "rows", "vector"};

struct Signature {
  const char* name;
  size_t least_inputs, most_inputs;
  std::array<size_t, 2> constants;  // either so many
};
constexpr Signature kSignatures[] = {
    // in the order of Op
    {"map", 1, 1, {0, 2}},        {"conv", 1, 2, {3, 4}},         {"max_pool", 1, 1, {0, 0}},
    {"avg_pool", 1, 1, {0, 0}},   {"adaptive", 1, 1, {0, 0}},     {"add", 2, 2, {0, 0}},
    {"mul", 2, 2, {0, 0}},        {"concat", 1, 1 << 16, {0, 0}}, {"pad", 1, 1, {0, 0}},
    {"layer_norm", 1, 1, {0, 2}}, {"attention", 3, 3, {0, 0}}};

template <size_t N>
size_t index_of(const char* const (&names)[N], const Json* json, const std::string& what) {
  const auto* name = json ? json->as<std::string>() : nullptr;
  const auto found = name ? std::find(std::begin(names), std::end(names), *name) : std::end(names);
  require(found != std::end(names), what, " must be known, got ", name ? *name : "none");
  return size_t(found - std::begin(names));
}

int64_t integer(const Json& json, const std::string& what, int64_t low, int64_t high) {
  const auto* whole = json.as<int64_t>();
  require(whole != nullptr && *whole >= low && *whole <= high, what, " must be an integer from ", low, " to ", high);
  return *whole;
}

float real(const Json& json, const std::string& what) {
  const auto* whole = json.as<int64_t>();
  const auto* value = json.as<double>();
  const double wide = whole ? double(*whole) : value ? *value : std::numeric_limits<double>::quiet_NaN();
  const auto narrow = float(wide);
  require(std::isfinite(narrow), what, " must be a finite float32");
  return narrow;
}

const Json::List& list(const Json* json, const std::string& what) {
  const auto* found = json ? json->as<Json::List>() : nullptr;
  require(found != nullptr, what, " must be a list");
  return *found;
}

const Json::Members& members(const Json* json, const std::string& what) {
  const auto* found = json ? json->as<Json::Members>() : nullptr;
  require(found != nullptr, what, " must be an object");
  return *found;
}

const Json* find(const Json::Members& object, std::string_view name) {
  for (const auto& [key, value] : object)
    if (key == name) return &value;
  return nullptr;
}

template <size_t N>
std::array<int64_t, N> integers(const Json& json, const std::string& what, int64_t low) {
  const Json::List& found = list(&json, what);
  require(found.size() == N, what, " must have ", N, " values, got ", found.size());
  std::array<int64_t, N> result;
  for (size_t d = 0; d < N; ++d) result[d] = integer(found[d], what, low, kMost);
  return result;
}

bool boolean(const Json& json, const std::string& what) {
  const auto* found = json.as<bool>();
  require(found != nullptr, what, " must be true or false");
  return *found;
}

Grid grid(const Json& json, const std::string& what) {
  const Json::List& found = list(&json, what);
  require(found.size() == 4, what, " must be [scale, zero_point, low, high]");
  Grid g;
  g.scale = real(found[0], what + "'s scale");
  require(g.scale > 0, what, "'s scale must be positive");
  g.low = int32_t(integer(found[2], what + "'s low", 0, 254));
  g.high = int32_t(integer(found[3], what + "'s high", g.low + 1, 255));
  g.zero = int32_t(integer(found[1], what + "'s zero_point", g.low, g.high));
  return g;
}

std::vector<int32_t> numbers(const Json* json, const std::string& what, int64_t count) {
  std::vector<int32_t> result;
  for (const Json& number : list(json, what)) result.push_back(int32_t(integer(number, what, 0, count - 1)));
  return result;
}

// Whether the op has an attribute of this name; sets it.
bool attribute(Instruction& i, std::string_view name, const Json& json, const std::string& what) {
  const bool window = i.op == Op::conv || i.op == Op::max_pool || i.op == Op::avg_pool;
  const bool pool = i.op == Op::max_pool || i.op == Op::avg_pool;
  const bool active = !pool && i.op != Op::adaptive && i.op != Op::concat && i.op != Op::pad && i.op != Op::attention;
  if (active && name == "activation")
    i.activation = Activation(index_of(kActivations, &json, what));
  else if (window && name == "stride")
    i.stride = integers<2>(json, what, 1);
  else if (window && name == "padding")
    i.padding = integers<2>(json, what, 0);
  else if (window && i.op != Op::avg_pool && name == "dilation")
    i.dilation = integers<2>(json, what, 1);
  else if (pool && name == "kernel")
    i.kernel = integers<2>(json, what, 1);
  else if (pool && name == "ceil")
    i.ceil = boolean(json, what);
  else if (i.op == Op::avg_pool && name == "include_pad")
    i.include_pad = boolean(json, what);
  else if (i.op == Op::avg_pool && name == "divisor")
    i.divisor = integer(json, what, 0, kMost);
  else if (i.op == Op::conv && name == "groups")
    i.groups = integer(json, what, 1, kMost);
  else if (i.op == Op::conv && name == "columns")
    i.columns = integer(json, what, 1, kMost);
  else if (i.op == Op::adaptive && name == "size")
    i.size = integers<2>(json, what, 1);
  else if (i.op == Op::pad && name == "around")
    i.around = integers<4>(json, what, 0);
  else if (i.op == Op::layer_norm && name == "eps")
    i.eps = real(json, what);
  else if (i.op == Op::attention && name == "heads")
    i.heads = integer(json, what, 1, kMost);
  else if (i.op == Op::attention && name == "width")
    i.width = integer(json, what, 1, kMost);
  else if (i.op == Op::attention && name == "scale")
    i.scale = real(json, what);
  else if (i.op == Op::attention && name == "causal")
    i.causal = boolean(json, what);
  else if (i.op == Op::attention && name == "first")
    i.first = integers<3>(json, what, 0);
  else
    return false;
  return true;
}

Instruction instruction(const Json& json, const std::string& where, int64_t values) {
  const Json::Members& row = members(&json, where);
  const char* names[std::size(kSignatures)];
  for (size_t n = 0; n < std::size(names); ++n) names[n] = kSignatures[n].name;
  const size_t op = index_of(names, find(row, "op"), where + ": op");
  const Signature& signature = kSignatures[op];
  const std::string what = where + " (" + signature.name + ")";
  Instruction i;
  i.op = Op(op);
  i.inputs = numbers(find(row, "inputs"), what + ": inputs", values);
  require(i.inputs.size() >= signature.least_inputs && i.inputs.size() <= signature.most_inputs, what,
          ": inputs must be ", signature.least_inputs, " to ", signature.most_inputs, ", got ", i.inputs.size());
  for (const auto& [name, value] : row) {
    if (name == "op" || name == "inputs") continue;
    if (name == "grid")
      i.grid = grid(value, what + ": grid");
    else if (name == "constants")
      i.constants = numbers(&value, what + ": constants", kMostConstants);
    else
      require(attribute(i, name, value, what + ": " + name), what, ": attributes must be known, got ", name);
  }
  const auto [some, all] = signature.constants;
  require(i.constants.size() == some || i.constants.size() == all, what, ": constants must be ", some, " or ", all,
          ", got ", i.constants.size());
  std::vector<const char*> needed;
  if (i.op == Op::adaptive) needed = {"size"};
  if (i.op == Op::pad) needed = {"around"};
  if (i.op == Op::max_pool || i.op == Op::avg_pool) needed = {"kernel"};
  if (i.op == Op::attention) needed = {"heads", "width", "scale"};
  for (const char* name : needed) require(find(row, name) != nullptr, what, ": ", name, " must be given");
  if (i.op == Op::max_pool || i.op == Op::avg_pool)  // so that every window holds a pixel
    for (size_t d = 0; d < 2; ++d)
      require(2 * i.padding[d] <= i.kernel[d], what, ": padding must be at most half of kernel, got ", i.padding[d],
              " for ", i.kernel[d]);
  require(i.eps >= 0, what, ": eps must be at least 0");
  return i;
}

}  // namespace

std::string name_of(const Program& program, size_t instruction) {
  return "instruction " + std::to_string(instruction) + " (" +
         kSignatures[size_t(program.instructions[instruction].op)].name + ")";
}

const char* name_of(Form form) { return kForms[size_t(form)]; }

Program parse_program(std::string_view text) {
  const Json json = parse_json(text);
  const Json::Members& whole = members(&json, "program");
  for (const auto& [name, value] : whole)
    require(name == "version" || name == "inputs" || name == "instructions" || name == "outputs",
            "program's members must be known, got ", name);
  const Json* version = find(whole, "version");
  require(version != nullptr && version->as<int64_t>() != nullptr && *version->as<int64_t>() == 1,
          "program's version must be 1");
  Program program;
  for (const Json& form : list(find(whole, "inputs"), "program's inputs"))
    program.inputs.push_back(Form(index_of(kForms, &form, "an input's form")));
  const Json::List& rows = list(find(whole, "instructions"), "program's instructions");
  require(int64_t(rows.size() + program.inputs.size()) <= kMostInstructions, "program must have at most ",
          kMostInstructions, " values");
  program.instructions.reserve(rows.size());
  for (size_t n = 0; n < rows.size(); ++n) {
    program.instructions.push_back(instruction(rows[n], "instruction " + std::to_string(n), program.values()));
    const Instruction& i = program.instructions.back();
    for (const int32_t c : i.constants) program.constants = std::max(program.constants, c + 1);
    require(i.op != Op::conv || program.grid(i.inputs[0]) != nullptr, name_of(program, n),
            ": its input must be on a grid");
    require(i.op != Op::attention ||
                std::all_of(i.inputs.begin(), i.inputs.end(), [&](int32_t v) { return program.grid(v) == nullptr; }),
            name_of(program, n), ": its inputs must be float32");
  }
  for (const Json& output : list(find(whole, "outputs"), "program's outputs")) {
    const Json::List& pair = list(&output, "an output");
    require(pair.size() == 2, "an output must be [value, form]");
    program.outputs.push_back({int32_t(integer(pair[0], "an output's value", 0, program.values() - 1)),
                               Form(index_of(kForms, &pair[1], "an output's form"))});
  }
  return program;
}

}  // namespace sparseq::network
