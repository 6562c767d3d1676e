// The Python module sparseq._C: facts about this build and this machine. Importing it registers the ops.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <tuple>

#include "core/isa.h"
#include "core/recycle.h"

namespace py = pybind11;

namespace {

std::map<std::string, std::string> build_info() {
  std::map<std::string, std::string> info;
  info["compiler"] = "gcc " __VERSION__;
  info["torch"] = SPARSEQ_BUILD_TORCH;
#ifdef SPARSEQ_WITH_CUDA
  info["cuda"] = SPARSEQ_CUDA_VERSION;
  info["cuda_architectures"] = SPARSEQ_CUDA_ARCHITECTURES;
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "sparseq's compiled core: build facts and run-time ISA. The ops are in torch.ops.sparseq.";
  m.def("isa", [] { return std::string(sparseq::name_of(sparseq::active_isa())); });
  m.def("set_isa", &sparseq::set_isa, py::arg("name"));
  m.def("supported_isas", [] {
    std::vector<std::string> names;
    for (sparseq::Isa isa : sparseq::supported_isas()) names.emplace_back(sparseq::name_of(isa));
    return names;
  });
  m.def("build_info", &build_info);
  m.def("empty_cache", &sparseq::empty_cache);
}
