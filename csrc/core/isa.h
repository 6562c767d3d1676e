// Which instruction set the kernels use. No torch headers, no intrinsics.
#pragma once

#include <string>
#include <vector>

namespace sparseq {

enum class Isa : int { scalar = 0, avx2 = 1, avx_vnni = 2, avx512 = 3, avx512_vnni = 4, amx_int8 = 5 };

// Every ISA this CPU and its operating system can run, lowest first (cpuid and xgetbv, once).
const std::vector<Isa>& supported_isas();

// The ISA in use: the highest supported one, unless SPARSEQ_ISA or set_isa() lowered it.
Isa active_isa();

// Throws std::invalid_argument for a name that is unknown or that this machine cannot run.
void set_isa(const std::string& name);

const char* name_of(Isa isa);

}  // namespace sparseq
