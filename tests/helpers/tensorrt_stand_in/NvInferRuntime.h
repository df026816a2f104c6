// A stand-in for TensorRT's header, for tests of examples/cpp/tensorrt_runner.cpp: what the runner uses of it, and no
// more. A "plan" is text, a line for each profile: the smallest and the largest rows, then the sizes of a row. The
// input is "video" in uint8, the outputs are "video_embedding" (rows, 3): the sum of the row's bytes, the rows of the
// batch and the sum of its bytes; and "mixed_5c" (rows, 1): the row's first byte. Written from the documentation; it has nothing of
// TensorRT's own.
#pragma once

#include <cstdint>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "cuda_runtime_api.h"

#define NV_TENSORRT_MAJOR 11

namespace nvinfer1 {

enum class DataType { kFLOAT, kHALF, kINT8, kINT32, kBOOL, kUINT8, kFP8, kBF16, kINT64 };
enum class TensorIOMode { kNONE, kINPUT, kOUTPUT };
enum class OptProfileSelector { kMIN, kOPT, kMAX };
struct Dims {
    static constexpr int MAX_DIMS = 8;
    int nbDims = 0;
    std::int64_t d[MAX_DIMS] = {};
};

class ILogger {
public:
    enum class Severity { kINTERNAL_ERROR, kERROR, kWARNING, kINFO, kVERBOSE };
    virtual void log(Severity severity, char const* message) noexcept = 0;
    virtual ~ILogger() = default;
};

struct Profile {
    Dims low, high;
};

class IExecutionContext {
public:
    IExecutionContext(std::vector<Profile> profiles, int* contexts) : profiles_(profiles), contexts_(contexts) {
        ++*contexts_;
    }
    ~IExecutionContext() { --*contexts_; }

    bool setOptimizationProfileAsync(int profile, cudaStream_t) {
        profile_ = profile;
        return !stand_in::fails("setOptimizationProfileAsync");
    }
    bool setInputShape(char const*, const Dims& shape) {
        const Profile& chosen = profiles_.at(static_cast<std::size_t>(profile_));
        for (int axis = 0; axis < shape.nbDims; ++axis) {
            if (shape.d[axis] < chosen.low.d[axis] || shape.d[axis] > chosen.high.d[axis]) return false;
        }
        shape_ = shape;
        return shape.nbDims == chosen.low.nbDims;
    }
    Dims getTensorShape(char const* name) const {
        return {2, {shape_.nbDims == 0 ? -1 : shape_.d[0], std::string(name) == "mixed_5c" ? 1 : 3}};
    }
    bool setTensorAddress(char const* name, void* pointer) {
        addresses_[name] = pointer;
        return true;
    }
    bool enqueueV3(cudaStream_t stream) {
        if (stand_in::fails("enqueueV3") || stream == nullptr || addresses_.size() != 3) return false;
        std::size_t row = 1;
        for (int axis = 1; axis < shape_.nbDims; ++axis) row *= static_cast<std::size_t>(shape_.d[axis]);
        const auto* bytes = static_cast<const unsigned char*>(addresses_["video"]);
        auto* sums = static_cast<float*>(addresses_["video_embedding"]);
        auto* firsts = static_cast<float*>(addresses_["mixed_5c"]);
        const auto rows = static_cast<std::size_t>(shape_.d[0]);
        float total = 0;
        for (std::size_t byte = 0; byte < rows * row; ++byte) total += bytes[byte];
        for (std::size_t at = 0; at < rows; ++at, bytes += row) {
            sums[at * 3] = 0;
            for (std::size_t byte = 0; byte < row; ++byte) sums[at * 3] += bytes[byte];
            sums[at * 3 + 1] = static_cast<float>(rows);
            sums[at * 3 + 2] = total;
            firsts[at] = bytes[0];
        }
        return true;
    }

private:
    std::vector<Profile> profiles_;
    int* contexts_;
    int profile_ = 0;
    Dims shape_;
    std::map<std::string, void*> addresses_;
};

class ICudaEngine {
public:
    explicit ICudaEngine(std::vector<Profile> profiles, int* engines) : profiles_(profiles), engines_(engines) {
        ++*engines_;
    }
    ~ICudaEngine() {
        if (contexts_ != 0) std::fprintf(stderr, "stand-in: an engine was freed before its contexts\n");
        --*engines_;
    }
    IExecutionContext* createExecutionContext() {
        return stand_in::fails("createExecutionContext") ? nullptr : new IExecutionContext(profiles_, &contexts_);
    }
    int getNbIOTensors() const { return 3; }
    char const* getIOTensorName(int index) const {
        constexpr const char* names[] = {"mixed_5c", "video", "video_embedding"};
        return names[index];
    }
    TensorIOMode getTensorIOMode(char const* name) const {
        return std::string(name) == "video" ? TensorIOMode::kINPUT : TensorIOMode::kOUTPUT;
    }
    DataType getTensorDataType(char const* name) const {
        const DataType input = stand_in::fails("dtype") ? DataType::kHALF : DataType::kUINT8;
        return std::string(name) == "video" ? input : DataType::kFLOAT;
    }
    int getNbOptimizationProfiles() const { return static_cast<int>(profiles_.size()); }
    Dims getProfileShape(char const*, int profile, OptProfileSelector which) const {
        const Profile& chosen = profiles_.at(static_cast<std::size_t>(profile));
        return which == OptProfileSelector::kMIN ? chosen.low : chosen.high;
    }

private:
    std::vector<Profile> profiles_;
    int* engines_;
    int contexts_ = 0;
};

class IRuntime {
public:
    explicit IRuntime(ILogger& logger) : logger_(logger) {}
    ~IRuntime() {
        if (engines_ != 0) std::fprintf(stderr, "stand-in: a runtime was freed before its engines\n");
    }
    ICudaEngine* deserializeCudaEngine(void const* data, std::size_t size) {
        std::istringstream text(std::string(static_cast<const char*>(data), size));
        std::vector<Profile> profiles;
        for (std::string line; std::getline(text, line);) {
            std::istringstream in(line);
            Profile profile;
            in >> profile.low.d[0] >> profile.high.d[0];
            profile.low.nbDims = 1;
            while (in >> profile.low.d[profile.low.nbDims]) ++profile.low.nbDims;
            const std::int64_t rows = profile.high.d[0];
            profile.high = profile.low;
            profile.high.d[0] = rows;
            profiles.push_back(profile);
        }
        if (profiles.empty() || profiles[0].low.nbDims < 2) {
            logger_.log(ILogger::Severity::kERROR, "the plan is of another version");
            return nullptr;
        }
        return new ICudaEngine(profiles, &engines_);
    }

private:
    ILogger& logger_;
    int engines_ = 0;
};

inline IRuntime* createInferRuntime(ILogger& logger) {
    return stand_in::fails("createInferRuntime") ? nullptr : new IRuntime(logger);
}

}  // namespace nvinfer1
