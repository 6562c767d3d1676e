// Programs on the CPU: sparseq/program.py says what they mean.
#include "../core/tensors.h"
#include "../gemm/arguments.h"
#include "cache.h"
#include "fail.h"

namespace sparseq::network {
namespace {

TensorInfo info_of(const Tensor& t) {
  const auto sizes = t.sizes(), strides = t.strides();
  return {gemm::element_of(t.scalar_type()),
          t.is_contiguous(),
          {sizes.begin(), sizes.end()},
          {strides.begin(), strides.end()}};
}

std::vector<TensorInfo> infos_of(const std::vector<Tensor>& tensors) {
  std::vector<TensorInfo> infos;
  for (const Tensor& t : tensors) infos.push_back(info_of(t));
  return infos;
}

// All that a plan rests on in a tensor: of constants, which must be contiguous, no strides.
void describe(const Tensor& t, bool strides, Key& key) {
  const auto sizes = t.sizes();
  key.push_back(int64_t(gemm::element_of(t.scalar_type())) * 2 + t.is_contiguous());
  key.push_back(int64_t(sizes.size()));
  key.insert(key.end(), sizes.begin(), sizes.end());
  if (!strides) return;
  const auto steps = t.strides();
  key.insert(key.end(), steps.begin(), steps.end());
}

// Memory of one call, from the blocks of earlier ones.
class Arena {
 public:
  explicit Arena(size_t size) : size_(size), data_(size ? take_block(size) : nullptr) {}
  ~Arena() {
    if (data_ != nullptr) give_block(data_, size_);
  }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  uint8_t* data() { return static_cast<uint8_t*>(data_); }

 private:
  size_t size_;
  void* data_;
};

std::vector<Tensor> run(const std::string& text, const std::vector<Tensor>& constants,
                        const std::vector<Tensor>& inputs) {
  static Cache cache;
  const Isa isa = active_isa();
  const auto threads = int64_t(torch::stable::get_num_threads());
  thread_local Key key;  // with its memory, from call to call
  key.assign({int64_t(isa), threads, int64_t(constants.size()), int64_t(inputs.size())});
  for (const Tensor& t : constants) describe(t, false, key);
  for (const Tensor& t : inputs) describe(t, true, key);
  const std::shared_ptr<const Plan> plan = cache.plan(text, key, [&](std::shared_ptr<const Program> program) {
    return std::make_shared<const Plan>(std::move(program), infos_of(inputs), infos_of(constants), isa, threads);
  });

  Arena arena(size_t(plan->arena()));
  std::vector<Tensor> outputs;
  std::vector<uint8_t*> bases{arena.data()};
  for (const Tensor& t : inputs) bases.push_back(static_cast<uint8_t*>(const_cast<void*>(t.const_data_ptr())));
  for (const OutputInfo& o : plan->outputs()) {
    outputs.push_back(fresh(o.sizes, ScalarType::Float, sizeof(float), o.channels_last));
    bases.push_back(static_cast<uint8_t*>(outputs.back().mutable_data_ptr()));
  }
  std::vector<const void*> data;
  data.reserve(constants.size());
  for (const Tensor& t : constants) data.push_back(t.const_data_ptr());
  plan->run({bases, data}, [](int64_t count, auto walk) {
    torch::stable::parallel_for(0, count, 1, [&](int64_t thread, int64_t) { walk(thread); });
  });
  return outputs;
}

std::vector<Tensor> network_cpu(std::string program, std::vector<Tensor> constants, std::vector<Tensor> inputs) {
  try {
    return run(program, constants, inputs);
  } catch (const std::invalid_argument& error) {
    fail("network: ", error.what());
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparseq, CPU, m) { m.impl("network", TORCH_BOX(&network_cpu)); }

}  // namespace sparseq::network
