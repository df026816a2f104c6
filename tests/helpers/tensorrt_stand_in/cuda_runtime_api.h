// A stand-in for CUDA's header, for tests of examples/cpp/tensorrt_runner.cpp: device memory is host memory, and what
// MILNCE_STAND_IN_FAILS names fails. Written from the documentation; it has nothing of CUDA's own.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

enum cudaError_t { cudaSuccess = 0, cudaErrorMemoryAllocation = 2, cudaErrorInsufficientDriver = 35 };
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost };
struct CUstream_st {};
using cudaStream_t = CUstream_st*;
constexpr unsigned cudaStreamNonBlocking = 1;

namespace stand_in {

inline bool fails(const char* call) {
    const char* named = std::getenv("MILNCE_STAND_IN_FAILS");
    return named != nullptr && std::string(named) == call;
}

// What is held, counted; the program must end with nothing held.
inline int& held() {
    static int count = 0;
    return count;
}
struct AtEnd {
    ~AtEnd() {
        if (held() != 0) std::fprintf(stderr, "stand-in: %d things were not freed\n", held());
    }
};
inline AtEnd at_end;

}  // namespace stand_in

inline const char* cudaGetErrorName(cudaError_t status) {
    return status == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation" : "cudaErrorInsufficientDriver";
}
inline const char* cudaGetErrorString(cudaError_t status) {
    return status == cudaErrorMemoryAllocation ? "out of memory" : "CUDA driver version is insufficient";
}
inline cudaError_t cudaSetDevice(int) {
    return stand_in::fails("cudaSetDevice") ? cudaErrorInsufficientDriver : cudaSuccess;
}
inline cudaError_t cudaMalloc(void** pointer, std::size_t bytes) {
    if (stand_in::fails("cudaMalloc")) return cudaErrorMemoryAllocation;
    ++stand_in::held();
    *pointer = std::malloc(bytes);
    std::memset(*pointer, 0xAB, bytes);  // as dirty as device memory is
    return cudaSuccess;
}
inline cudaError_t cudaMallocHost(void** pointer, std::size_t bytes) {
    return stand_in::fails("cudaMallocHost") ? cudaErrorMemoryAllocation : cudaMalloc(pointer, bytes);
}
inline cudaError_t cudaFree(void* pointer) {
    --stand_in::held();
    std::free(pointer);
    return cudaSuccess;
}
inline cudaError_t cudaFreeHost(void* pointer) { return cudaFree(pointer); }
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
    ++stand_in::held();
    *stream = new CUstream_st;
    return cudaSuccess;
}
inline cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    --stand_in::held();
    delete stream;
    return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) {
    return stand_in::fails("cudaStreamSynchronize") ? cudaErrorMemoryAllocation : cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind, cudaStream_t) {
    if (stand_in::fails("cudaMemcpyAsync")) return cudaErrorMemoryAllocation;
    std::memcpy(to, from, bytes);
    return cudaSuccess;
}
