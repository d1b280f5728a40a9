// What AOTInductor calls of frame.cpp, compiled together with a package's own code: see native.py,
// which defines LANES and ACTIVATION. AOTInductor passes lists as a pointer and a length, and takes
// results through pointers.

// Before the compiler is told to hurry: what frame.cpp includes is others' code.
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <string>

#include <immintrin.h>
#include <omp.h>

#pragma GCC push_options
#pragma GCC optimize("O3")

#include "frame.cpp"

namespace movinet_port {
namespace {

float* data_of(AtenTensorHandle tensor) {
    void* found = nullptr;
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(tensor, &found));
    return static_cast<float*>(found);
}

float* make(int64_t dimensions, const int64_t* shape, const int64_t* strides,
            AtenTensorHandle* tensor) {
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
        dimensions, shape, strides, aoti_torch_dtype_float32(), aoti_torch_device_type_cpu(), 0,
        tensor));
    return data_of(*tensor);
}

float* make_frame(int64_t height, int64_t width, int64_t channels, AtenTensorHandle* tensor) {
    const int64_t shape[] = {1, height, width, channels};
    const int64_t strides[] = {height * width * channels, width * channels, channels, 1};
    return make(4, shape, strides, tensor);
}

float* make_vector(int64_t size, AtenTensorHandle* tensor) {
    const int64_t shape[] = {1, size}, strides[] = {size, 1};
    return make(2, shape, strides, tensor);
}

// A structure from its words. The addresses of tensors are known only now: `places` says which words
// they are.
template <typename Structure>
Structure filled(const AtenTensorHandle* tensors, int64_t number, const int64_t* places,
                 const int64_t* words) {
    int64_t all[sizeof(Structure) / sizeof(int64_t)];
    std::memcpy(all, words, sizeof(all));
    for (int64_t i = 0; i < number; ++i)
        all[places[i]] = reinterpret_cast<int64_t>(data_of(tensors[i]));
    Structure structure;
    std::memcpy(&structure, all, sizeof(all));
    structure.threads = omp_get_max_threads();
    return structure;
}

}  // namespace
}  // namespace movinet_port

static AOTITorchError aoti_torch_cpu_stream_stem(
    const AtenTensorHandle* tensors, int64_t number, const int64_t* places, int64_t,
    const int64_t* words, int64_t, AtenTensorHandle* out
) {
    using namespace movinet_port;
    Stem s = filled<Stem>(tensors, number, places, words);
    // Those of the clip that is there now, whatever it was compiled with.
    int64_t* strides = nullptr;
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(tensors[0], &strides));
    s.channel_step = strides[1];
    s.row_step = strides[3];
    s.pixel_step = strides[4];
    s.out = make_frame(s.out_height, s.out_width, s.filters, out);
    compute_stems<ACTIVATION>(s);
    return AOTI_TORCH_SUCCESS;
}

static AOTITorchError aoti_torch_cpu_stream_vector(
    const AtenTensorHandle* tensors, int64_t number, const int64_t* places, int64_t,
    const int64_t* words, int64_t, AtenTensorHandle* out
) {
    using namespace movinet_port;
    MatrixVector m = filled<MatrixVector>(tensors, number, places, words);
    m.out = make_vector(m.rows, out);
    multiply_matrix(m);
    return AOTI_TORCH_SUCCESS;
}

static AOTITorchError aoti_torch_cpu_stream_layer(
    const AtenTensorHandle* tensors, int64_t number, const int64_t* places, int64_t,
    const int64_t* words, int64_t, AtenTensorHandle* out, AtenTensorHandle* mixed,
    AtenTensorHandle* total
) {
    using namespace movinet_port;
    Layer l = filled<Layer>(tensors, number, places, words);
    l.out = make_frame(l.out_height, l.out_width, l.outputs, out);
    l.mixed = l.mixes ? make_frame(l.out_height, l.out_width, l.channels, mixed)
                      : make_vector(0, mixed);
    l.total = make_vector(l.whole ? l.channels : 0, total);
    compute_layer<ACTIVATION>(l);
    return AOTI_TORCH_SUCCESS;
}

#pragma GCC pop_options
