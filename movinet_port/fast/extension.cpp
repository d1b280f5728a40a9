// The library that "eager" calls where it could be compiled when movinet-port was installed (setup.py):
// frame.cpp and clip.cpp for one kind of CPU, behind functions of plain C, each for one structure of
// members.h. extension.py calls them.

#include <type_traits>

#ifdef __AVX512F__
#define LANES 16
#else
#define LANES 8
#endif

#include "clip.cpp"

using namespace movinet_port;

namespace {

// Call `body` with an activation that the compiler knows: those of the published networks.
template <typename Body>
void with_activation(int64_t activation, const Body& body) {
    if (activation == kSwish)
        body(std::integral_constant<Activation, kSwish>());
    else
        body(std::integral_constant<Activation, kHardSwish>());
}

}  // namespace

extern "C" {

const char* movinet_port_layout() {
    static const std::string text = layout();
    return text.c_str();
}

int64_t movinet_port_lanes() { return LANES; }

void movinet_port_Stem(const Stem* a) {
    with_activation(a->activation, [=](auto kind) { compute_stems<kind.value>(*a); });
}

void movinet_port_Clip(const Clip* a) {
    with_activation(a->activation, [=](auto kind) { compute_clip<kind.value>(*a); });
}

void movinet_port_Layer(const Layer* a) { compute_layer<kHardSwish>(*a); }

void movinet_port_Pixels(const Pixels* a) {
    if (a->activation == kNone) return multiply_pixels<kNone>(*a);
    with_activation(a->activation, [=](auto kind) { multiply_pixels<kind.value>(*a); });
}

void movinet_port_MatrixVector(const MatrixVector* a) { multiply_matrix(*a); }

void movinet_port_Pool(const Pool* a) {
    if (a->channels % LANES)
        average<LANES / 2>(*a);
    else
        average<LANES>(*a);
}

}  // extern "C"
