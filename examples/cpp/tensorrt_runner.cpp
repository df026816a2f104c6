// Runs a TensorRT plan of milnce on one batch, with NvInferRuntime and CUDA alone, as docs/engine-abi.md says.
//
//   g++ -std=c++17 -O2 tensorrt_runner.cpp -I/usr/local/cuda/include -L/usr/local/cuda/lib64 -lnvinfer -lcudart
//   ./a.out PLAN SHA256 INPUT SHAPE OUTPUT_PREFIX
//
// SHA256 is what the sidecar PLAN.json says; INPUT holds the raw bytes of the input tensor, SHAPE is its shape, such as
// 3x32x224x224x3. Each output is written to OUTPUT_PREFIX.<tensor>.f32, rows of the batch only.
//
// A batch that no profile takes is run as the next larger one, the rows beyond it zero.
//
// Compiled against the headers of TensorRT 8.5.3, 8.6.1, 10.3, 10.16 and 11.1 and CUDA 13.0; linked with TensorRT-RTX
// 1.7 its refusals have run on a machine without a GPU. It has not run a plan: no GPU with TensorRT was at hand.
#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>

#include <fstream>
#include <iostream>
#include <memory>
#include <sstream>

#include "milnce.hpp"

namespace {

[[noreturn]] void fail(const std::string& message) { throw std::runtime_error(message); }

// TensorRT reports reasons here and answers its callers with null or false: the last reason goes into the message.
class Logger final : public nvinfer1::ILogger {
public:
    void log(Severity severity, char const* message) noexcept override {
        if (severity <= Severity::kERROR) last_error = message;
        if (severity <= Severity::kWARNING) std::cerr << "TensorRT: " << message << "\n";
    }
    std::string last_error = "no reason was given";
};

Logger logger;  // TensorRT keeps the first logger of a process: it must live as long as anything of TensorRT

template <typename Pointer>
Pointer created(Pointer pointer, const char* what) {
    if (pointer == nullptr) fail(std::string(what) + " failed: " + logger.last_error);
    return pointer;
}

void require(bool succeeded, const std::string& what) {
    if (!succeeded) fail(what + " failed: " + logger.last_error);
}

void check(cudaError_t status, const char* call) {
    if (status != cudaSuccess) {
        fail(std::string(call) + " failed: " + cudaGetErrorName(status) + " (" + std::to_string(status) +
             "): " + cudaGetErrorString(status));
    }
}

struct FreeDevice {
    void operator()(void* pointer) const { cudaFree(pointer); }
};
struct FreePinned {
    void operator()(void* pointer) const { cudaFreeHost(pointer); }
};
struct DestroyStream {
    void operator()(cudaStream_t stream) const { cudaStreamDestroy(stream); }
};
using Stream = std::unique_ptr<CUstream_st, DestroyStream>;

// One tensor's memory: the program's own, pinned on the host and from cudaMalloc on the device (256-byte aligned).
struct Buffer {
    explicit Buffer(std::size_t size) : bytes(size) {
        void* pointer = nullptr;
        check(cudaMalloc(&pointer, bytes), "cudaMalloc");
        device.reset(pointer);
        check(cudaMallocHost(&pointer, bytes), "cudaMallocHost");
        host.reset(pointer);
        std::memset(host.get(), 0, bytes);
    }
    std::size_t bytes;
    std::unique_ptr<void, FreeDevice> device;
    std::unique_ptr<void, FreePinned> host;
};

std::size_t item_bytes(nvinfer1::DataType type, const std::string& tensor) {
    switch (type) {
        case nvinfer1::DataType::kUINT8: return 1;
        case nvinfer1::DataType::kINT32: return 4;
        case nvinfer1::DataType::kFLOAT: return 4;
#if NV_TENSORRT_MAJOR >= 10
        case nvinfer1::DataType::kINT64: return 8;
#endif
        default: fail("tensor " + tensor + " has a dtype that no plan of milnce has");
    }
}

std::size_t volume(const nvinfer1::Dims& dims) {
    std::size_t items = 1;
    for (int axis = 0; axis < dims.nbDims; ++axis) {
        if (dims.d[axis] < 1) fail("TensorRT does not know a tensor's shape");
        items *= static_cast<std::size_t>(dims.d[axis]);
    }
    return items;
}

nvinfer1::Dims parse_shape(const std::string& text) {
    nvinfer1::Dims dims{};
    std::istringstream in(text);
    for (std::string size; std::getline(in, size, 'x');) {
        const bool number = !size.empty() && size.size() < 10 && size.find_first_not_of("0123456789") == size.npos;
        if (!number || std::stoi(size) == 0 || dims.nbDims == nvinfer1::Dims::MAX_DIMS) {
            fail("the shape " + text + " cannot be read; sizes from 1 up expected, as in 1x32x224x224x3");
        }
        dims.d[dims.nbDims++] = std::stoi(size);
    }
    if (dims.nbDims == 0) fail("the shape is empty");
    return dims;
}

std::string read_file(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::ostringstream content;
    if (!file || !(content << file.rdbuf())) fail(path + " cannot be read, or is empty");
    return content.str();
}

struct Choice {
    int profile;
    int rows;  // of the batch that the profile runs: the request's own, or the next that it takes
};

// The profile that takes the shape with the fewest rows added.
Choice choose_profile(const nvinfer1::ICudaEngine& engine, const char* input, const nvinfer1::Dims& shape) {
    Choice best{-1, 0};
    for (int profile = 0; profile < engine.getNbOptimizationProfiles(); ++profile) {
        const auto low = engine.getProfileShape(input, profile, nvinfer1::OptProfileSelector::kMIN);
        const auto high = engine.getProfileShape(input, profile, nvinfer1::OptProfileSelector::kMAX);
        bool fits = low.nbDims == shape.nbDims && shape.d[0] <= high.d[0];
        for (int axis = 1; fits && axis < shape.nbDims; ++axis) {
            fits = low.d[axis] <= shape.d[axis] && shape.d[axis] <= high.d[axis];
        }
        const int rows = static_cast<int>(std::max(shape.d[0], low.d[0]));
        if (fits && (best.profile < 0 || rows < best.rows)) best = {profile, rows};
    }
    if (best.profile < 0) fail("no profile of the plan takes this shape; split the batch, or build one that does");
    return best;
}

void run(const std::vector<std::string>& arguments) {
    if (arguments.size() != 5) fail("PLAN SHA256 INPUT SHAPE OUTPUT_PREFIX are needed");
    const std::string plan = read_file(arguments[0]);
    // A plan is native code to TensorRT: compare its hash first, whatever TensorRT itself would find.
    if (milnce::sha256(plan) != arguments[1]) fail(arguments[0] + " is not the plan of that sha256; build it again");
    nvinfer1::Dims shape = parse_shape(arguments[3]);
    const std::string given = read_file(arguments[2]);

    check(cudaSetDevice(0), "cudaSetDevice");  // the primary context, and no other
    // Freed in the order opposite to this one: context, engine, runtime.
    const std::unique_ptr<nvinfer1::IRuntime> runtime(
        created(nvinfer1::createInferRuntime(logger), "createInferRuntime"));
    const std::unique_ptr<nvinfer1::ICudaEngine> engine(
        created(runtime->deserializeCudaEngine(plan.data(), plan.size()), "deserializeCudaEngine"));
    const std::unique_ptr<nvinfer1::IExecutionContext> context(
        created(engine->createExecutionContext(), "createExecutionContext"));
    cudaStream_t handle = nullptr;
    check(cudaStreamCreateWithFlags(&handle, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
    const Stream stream(handle);

    std::string input;
    std::vector<std::string> outputs;
    for (int index = 0; index < engine->getNbIOTensors(); ++index) {
        const char* name = engine->getIOTensorName(index);
        if (engine->getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT) {
            input = name;
        } else {
            outputs.emplace_back(name);
        }
    }
    const int rows = static_cast<int>(shape.d[0]);
    const Choice choice = choose_profile(*engine, input.c_str(), shape);
    const std::size_t row_bytes = volume(shape) / static_cast<std::size_t>(rows) *
                                  item_bytes(engine->getTensorDataType(input.c_str()), input);
    if (given.size() != row_bytes * static_cast<std::size_t>(rows)) {
        fail(arguments[2] + " has " + std::to_string(given.size()) + " bytes; " + input + " of that shape has " +
             std::to_string(row_bytes * static_cast<std::size_t>(rows)));
    }
    shape.d[0] = choice.rows;
    require(context->setOptimizationProfileAsync(choice.profile, stream.get()), "setOptimizationProfileAsync");
    require(context->setInputShape(input.c_str(), shape), "setInputShape");

    Buffer batch(row_bytes * static_cast<std::size_t>(choice.rows));  // rows that nobody asked for stay zero
    std::memcpy(batch.host.get(), given.data(), given.size());
    require(context->setTensorAddress(input.c_str(), batch.device.get()), "setTensorAddress of " + input);
    std::vector<Buffer> results;
    results.reserve(outputs.size());
    for (const std::string& name : outputs) {
        const std::size_t items = volume(context->getTensorShape(name.c_str()));
        results.emplace_back(items * item_bytes(engine->getTensorDataType(name.c_str()), name));
        require(context->setTensorAddress(name.c_str(), results.back().device.get()), "setTensorAddress of " + name);
    }

    check(cudaMemcpyAsync(batch.device.get(), batch.host.get(), batch.bytes, cudaMemcpyHostToDevice, stream.get()),
          "cudaMemcpyAsync");
    require(context->enqueueV3(stream.get()), "enqueueV3");
    for (const Buffer& result : results) {
        check(cudaMemcpyAsync(result.host.get(), result.device.get(), result.bytes, cudaMemcpyDeviceToHost,
                              stream.get()),
              "cudaMemcpyAsync");
    }
    // Errors of the kernels come out here, and outputs are complete only now.
    check(cudaStreamSynchronize(stream.get()), "cudaStreamSynchronize");

    for (std::size_t at = 0; at < outputs.size(); ++at) {
        const std::string path = arguments[4] + "." + outputs[at] + ".f32";
        const std::size_t row = results[at].bytes / static_cast<std::size_t>(choice.rows);
        const std::size_t bytes = row * static_cast<std::size_t>(rows);
        std::ofstream file(path, std::ios::binary);
        file.write(static_cast<const char*>(results[at].host.get()), static_cast<std::streamsize>(bytes));
        if (!file.flush()) fail(path + " cannot be written");
        std::cout << path << ": " << bytes << " bytes\n";
    }
}

}  // namespace

int main(int count, char** values) {
    try {
        run({values + 1, values + count});
        return 0;
    } catch (const std::exception& error) {
        std::cerr << "Error: " << error.what() << "\n";
        return 1;
    }
}
