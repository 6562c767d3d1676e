#include "isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace sparseq {
namespace {

constexpr Isa kAll[] = {Isa::scalar, Isa::avx2, Isa::avx_vnni, Isa::avx512, Isa::avx512_vnni, Isa::amx_int8};

#if defined(__x86_64__)
// gcc 12 has no __builtin_cpu_supports("avxvnni"): leaf 7, subleaf 1, eax bit 4
bool has_avx_vnni() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax >> 4 & 1);
}

// Leaf 7, edx bits 24 and 25; and Linux lends a process the tiles' state only on request (arch_prctl(2),
// ARCH_REQ_XCOMP_PERM of XFEATURE_XTILEDATA).
bool has_amx() {
#if defined(__linux__)
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  constexpr int kRequest = 0x1023, kTileData = 18;
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (edx >> 24 & 3) == 3 &&
         syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
  return false;
#endif
}
#endif

// __builtin_cpu_supports asks xgetbv too: a CPU bit without the operating system's support is not enough.
bool runs_here(Isa isa) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::scalar: return true;
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    case Isa::avx_vnni: return runs_here(Isa::avx2) && has_avx_vnni();
    case Isa::amx_int8: return runs_here(Isa::avx512_vnni) && has_amx();
    case Isa::avx512_vnni: return runs_here(Isa::avx512) && __builtin_cpu_supports("avx512vnni");
    case Isa::avx512:
      return runs_here(Isa::avx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  }
#endif
  return isa == Isa::scalar;
}

Isa parse(const std::string& name) {
  std::string known;
  for (Isa isa : supported_isas()) {
    if (name == name_of(isa)) return isa;
    known += (known.empty() ? "" : ", ") + std::string(name_of(isa));
  }
  throw std::invalid_argument("SPARSEQ_ISA: expected one of " + known + " on this machine, got '" + name + "'");
}

std::atomic<Isa>& current() {
  static std::atomic<Isa> isa = [] {
    const char* wanted = std::getenv("SPARSEQ_ISA");
    return wanted && *wanted ? parse(wanted) : supported_isas().back();
  }();
  return isa;
}

}  // namespace

const std::vector<Isa>& supported_isas() {
  static const std::vector<Isa> isas = [] {
    std::vector<Isa> found;
    for (Isa isa : kAll)
      if (runs_here(isa)) found.push_back(isa);
    return found;
  }();
  return isas;
}

Isa active_isa() { return current().load(std::memory_order_relaxed); }

void set_isa(const std::string& name) { current().store(parse(name), std::memory_order_relaxed); }

const char* name_of(Isa isa) {
  switch (isa) {
    case Isa::scalar: return "scalar";
    case Isa::avx2: return "avx2";
    case Isa::avx_vnni: return "avx_vnni";
    case Isa::avx512: return "avx512";
    case Isa::avx512_vnni: return "avx512_vnni";
    case Isa::amx_int8: return "amx_int8";
  }
  return "unknown";
}

}  // namespace sparseq
