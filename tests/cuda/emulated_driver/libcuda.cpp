// A stand-in for NVIDIA's libcuda.so.1 whose GPU is this CPU, so that pycuda and edge/cuda/driver.py run without one.
//
// Memory is the host's. What is put on a stream runs once something waits for it, no sooner: what was not waited for has not
// happened. A module is a shared library of this machine: of the kernel `scale` it has
//
//   void host_scale(unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, void **parameters)
//
// and cuLaunchKernel takes parameters as edge/cuda/driver_calls.py lays them out: 16 bytes apart, a null pointer behind the last.
// Codes of errors and what is refused while a stream is captured: CUDA driver API, 12.
//
// For the tests, beyond CUDA: emulated_fail, emulated_limit_memory, emulated_live. EMULATED_GPU_INTEGRATED=1: as on a Jetson.

#include <dlfcn.h>
#include <elf.h>
#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

namespace {

enum Code {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    NO_BINARY_FOR_GPU = 209,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    NOT_READY = 600,
    ILLEGAL_ADDRESS = 700,
    NOT_SUPPORTED = 801,
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901,
    CAPTURE_UNJOINED = 904,
    CAPTURE_ISOLATION = 905,
    CAPTURE_WRONG_THREAD = 908,
};

const std::map<int, const char *> TEXTS = {
    {0, "no error"},
    {1, "invalid argument"},
    {2, "out of memory"},
    {3, "initialization error"},
    {4, "driver shutting down"},
    {46, "CUDA-capable device(s) is/are busy or unavailable"},
    {101, "invalid device ordinal"},
    {200, "device kernel image is invalid"},
    {201, "invalid device context"},
    {209, "no kernel image is available for execution on the device"},
    {214, "uncorrectable ECC error encountered"},
    {220, "uncorrectable NVLink error detected during the execution"},
    {226, "Invalid access of peer GPU memory over nvlink or a hardware error"},
    {400, "invalid resource handle"},
    {500, "named symbol not found"},
    {600, "device not ready"},
    {700, "an illegal memory access was encountered"},
    {702, "the launch timed out and was terminated"},
    {709, "context is destroyed"},
    {710, "device-side assert triggered"},
    {714, "hardware stack error"},
    {715, "an illegal instruction was encountered"},
    {716, "misaligned address"},
    {717, "operation not supported on global/shared address space"},
    {718, "invalid program counter"},
    {719, "unspecified launch failure"},
    {801, "operation not supported"},
    {900, "operation not permitted when stream is capturing"},
    {901, "operation failed due to a previous error during capture"},
    {904, "capturing stream has unjoined work"},
    {905, "dependency created on uncaptured work in another stream"},
    {908, "attempt to terminate a thread-local capture sequence from another thread"},
    {999, "unknown error"},
};

const int MULTIPROCESSOR_COUNT = 16, INTEGRATED = 18, COMPUTE_MAJOR = 75, COMPUTE_MINOR = 76;  // enum CUdevice_attribute
const unsigned HOST_ALLOC_DEVICEMAP = 2;
const int CAPTURE_MODE_GLOBAL = 0;
const size_t SLOT = 16;

struct Stream;
struct Capture;

struct Mark {
    Stream *stream;
    Capture *capture;
    size_t position;
    bool done = false;
    std::chrono::steady_clock::time_point passed;
};

struct Operation {
    std::function<int()> work;
    std::shared_ptr<Mark> after;
};

struct Graph {
    std::vector<Operation> operations;
};

struct Capture {
    std::thread::id thread;
    bool of_all_threads;
    Stream *origin;
    Graph graph;
    std::map<Stream *, size_t> put, joined;
    bool valid = true;
};

struct Stream {
    std::deque<Operation> queue;
    Capture *capture = nullptr;
};

struct Event {
    std::shared_ptr<Mark> mark;
};

struct Module {
    void *library;
};

struct Context {
    int references = 0;
};

typedef void (*HostKernel)(unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void **);

std::recursive_mutex mutex;
bool initialized;
int lost;
size_t memory_limit = size_t(4) << 30, memory_used;
Context primary;
std::map<uintptr_t, size_t> device_memory, host_memory;
std::map<uintptr_t, unsigned> host_flags;
std::set<Stream *> streams;
std::set<Event *> events;
std::set<Module *> modules;
std::set<Graph *> graphs, ready_graphs;
std::vector<std::unique_ptr<Capture>> captures;
Stream default_stream;
thread_local std::vector<Context *> current;

// What every call is refused for. `forbidden`: while this thread captures, or any other for all of them, which spoils the capture.
int refused(bool forbidden = false) {
    if (!initialized) return NOT_INITIALIZED;
    if (lost) return lost;
    if (current.empty()) return INVALID_CONTEXT;
    if (forbidden) {
        for (auto &capture : captures) {
            if (!capture->of_all_threads && capture->thread != std::this_thread::get_id()) continue;
            capture->valid = false;
            return CAPTURE_UNSUPPORTED;
        }
    }
    return SUCCESS;
}

#define ENTER(FORBIDDEN)                                       \
    std::lock_guard<std::recursive_mutex> guard(mutex);        \
    if (int code = refused(FORBIDDEN)) return code;

bool within(const std::map<uintptr_t, size_t> &memory, uintptr_t address, size_t bytes) {
    auto next = memory.upper_bound(address);
    if (next == memory.begin()) return false;
    auto block = std::prev(next);
    return address + bytes <= block->first + block->second;
}

bool on_device(uintptr_t address, size_t bytes) {
    if (within(device_memory, address, bytes)) return true;
    if (!within(host_memory, address, bytes)) return false;
    return std::prev(host_flags.upper_bound(address))->second & HOST_ALLOC_DEVICEMAP;
}

Stream *stream_of(void *handle) {
    if (!handle) return &default_stream;
    auto stream = static_cast<Stream *>(handle);
    return streams.count(stream) ? stream : nullptr;
}

int run_next(Stream *stream) {
    Operation operation = std::move(stream->queue.front());
    stream->queue.pop_front();
    if (int code = operation.work ? operation.work() : int(SUCCESS)) lost = code;
    return lost;
}

int run_until(const std::shared_ptr<Mark> &goal) {
    std::vector<std::shared_ptr<Mark>> wanted = {goal};
    while (!goal->done) {
        while (wanted.back()->done) wanted.pop_back();
        Stream *stream = wanted.back()->stream;
        std::shared_ptr<Mark> after = stream->queue.front().after;
        if (after && !after->done) {
            wanted.push_back(after);
        } else if (int code = run_next(stream)) {
            return code;
        }
    }
    return SUCCESS;
}

std::shared_ptr<Mark> put_mark(Stream *stream) {
    auto mark = std::make_shared<Mark>();
    mark->stream = stream;
    mark->capture = nullptr;
    stream->queue.push_back({[mark] {
                                 mark->done = true;
                                 mark->passed = std::chrono::steady_clock::now();
                                 return int(SUCCESS);
                             },
                             nullptr});
    return mark;
}

int finish(Stream *stream) { return run_until(put_mark(stream)); }

int finish_all() {
    for (Stream *stream : streams) {
        if (!stream->capture) {
            if (int code = finish(stream)) return code;
        }
    }
    return finish(&default_stream);
}

int put(void *handle, std::function<int()> work) {
    Stream *stream = stream_of(handle);
    if (!stream) return INVALID_HANDLE;
    if (Capture *capture = stream->capture) {
        if (!capture->valid) return CAPTURE_INVALIDATED;
        capture->graph.operations.push_back({std::move(work), nullptr});
        ++capture->put[stream];
    } else {
        stream->queue.push_back({std::move(work), nullptr});
    }
    return SUCCESS;
}

int put_and_finish(std::function<int()> work) {
    int code = put(nullptr, std::move(work));
    return code ? code : finish(&default_stream);
}

std::function<int()> to_device(uintptr_t target, const void *source, size_t bytes) {
    return [=] {
        if (!on_device(target, bytes)) return int(ILLEGAL_ADDRESS);
        std::memcpy(reinterpret_cast<void *>(target), source, bytes);
        return int(SUCCESS);
    };
}

std::function<int()> to_host(void *target, uintptr_t source, size_t bytes) {
    return [=] {
        if (!on_device(source, bytes)) return int(ILLEGAL_ADDRESS);
        std::memcpy(target, reinterpret_cast<const void *>(source), bytes);
        return int(SUCCESS);
    };
}

std::function<int()> to_value(uintptr_t target, unsigned char value, size_t bytes) {
    return [=] {
        if (!on_device(target, bytes)) return int(ILLEGAL_ADDRESS);
        std::memset(reinterpret_cast<void *>(target), value, bytes);
        return int(SUCCESS);
    };
}

void *new_memory(size_t bytes, int filled_with) {
    void *memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
    if (memory) std::memset(memory, filled_with, bytes);
    return memory;
}

int load(void **module, const void *image) {
    auto header = static_cast<const Elf64_Ehdr *>(image);
    if (std::memcmp(header->e_ident, ELFMAG, SELFMAG)) return INVALID_IMAGE;
    if (header->e_machine == EM_CUDA) return NO_BINARY_FOR_GPU;
    size_t bytes = header->e_shoff + size_t(header->e_shnum) * header->e_shentsize;
    int file = memfd_create("module", 0);
    if (file < 0 || write(file, image, bytes) != ssize_t(bytes)) return OUT_OF_MEMORY;
    void *library = dlopen(("/proc/self/fd/" + std::to_string(file)).c_str(), RTLD_NOW | RTLD_LOCAL);
    close(file);
    if (!library) return INVALID_IMAGE;
    auto loaded = new Module{library};
    modules.insert(loaded);
    *module = loaded;
    return SUCCESS;
}

}  // namespace

extern "C" {

void emulated_fail(int code) { lost = code; }

void emulated_limit_memory(size_t bytes) { memory_limit = bytes; }

// What a program that gave everything back leaves: 0.
int emulated_live() {
    size_t all = device_memory.size() + host_memory.size() + streams.size() + events.size() + modules.size() + graphs.size() +
                 ready_graphs.size() + primary.references + current.size();
    return int(all);
}

int cuInit(unsigned) {
    initialized = true;
    return SUCCESS;
}

int cuDriverGetVersion(int *version) {
    *version = 12060;
    return SUCCESS;
}

int cuGetErrorString(int code, const char **text) {
    auto known = TEXTS.find(code);
    *text = known == TEXTS.end() ? nullptr : known->second;
    return *text ? SUCCESS : INVALID_VALUE;
}

int cuDeviceGetCount(int *count) {
    *count = 1;
    return initialized ? SUCCESS : NOT_INITIALIZED;
}

int cuDeviceGet(int *device, int ordinal) {
    *device = ordinal;
    return !initialized ? NOT_INITIALIZED : ordinal == 0 ? SUCCESS : INVALID_DEVICE;
}

int cuDeviceGetName(char *name, int length, int) {
    std::strncpy(name, "emulated GPU", length);
    return SUCCESS;
}

int cuDeviceComputeCapability(int *major, int *minor, int) {
    *major = 8;
    *minor = 7;
    return SUCCESS;
}

int cuDeviceTotalMem_v2(size_t *bytes, int) {
    *bytes = memory_limit;
    return SUCCESS;
}

int cuDeviceGetAttribute(int *value, int attribute, int) {
    const char *integrated = std::getenv("EMULATED_GPU_INTEGRATED");
    *value = attribute == MULTIPROCESSOR_COUNT ? 16
             : attribute == COMPUTE_MAJOR      ? 8
             : attribute == COMPUTE_MINOR      ? 7
             : attribute == INTEGRATED         ? integrated && !std::strcmp(integrated, "1")
                                               : 0;
    return SUCCESS;
}

int cuDevicePrimaryCtxRetain(void **context, int) {
    std::lock_guard<std::recursive_mutex> guard(mutex);
    if (lost) return lost;
    ++primary.references;
    *context = &primary;
    return SUCCESS;
}

int cuDevicePrimaryCtxRelease_v2(int) {
    std::lock_guard<std::recursive_mutex> guard(mutex);
    if (!primary.references) return INVALID_CONTEXT;
    --primary.references;
    return lost;
}

int cuCtxPushCurrent_v2(void *context) {
    std::lock_guard<std::recursive_mutex> guard(mutex);
    if (lost) return lost;
    if (context != &primary || !primary.references) return INVALID_CONTEXT;
    current.push_back(static_cast<Context *>(context));
    return SUCCESS;
}

int cuCtxPopCurrent_v2(void **context) {
    if (current.empty()) return INVALID_CONTEXT;
    *context = current.back();
    current.pop_back();
    return SUCCESS;
}

int cuCtxGetCurrent(void **context) {
    *context = current.empty() ? nullptr : current.back();
    return SUCCESS;
}

int cuCtxGetDevice(int *device) {
    *device = 0;
    return current.empty() ? INVALID_CONTEXT : SUCCESS;
}

int cuCtxSynchronize() {
    ENTER(true);
    return finish_all();
}

int cuMemGetInfo_v2(size_t *free, size_t *total) {
    ENTER(false);
    *free = memory_limit - memory_used;
    *total = memory_limit;
    return SUCCESS;
}

int cuMemAlloc_v2(uintptr_t *address, size_t bytes) {
    ENTER(true);
    if (!bytes) return INVALID_VALUE;
    if (bytes > memory_limit - memory_used) return OUT_OF_MEMORY;
    // what is not written shows
    *address = reinterpret_cast<uintptr_t>(new_memory(bytes, 0xCD));
    if (!*address) return OUT_OF_MEMORY;
    device_memory[*address] = bytes;
    memory_used += bytes;
    return SUCCESS;
}

int cuMemFree_v2(uintptr_t address) {
    ENTER(true);
    auto block = device_memory.find(address);
    if (block == device_memory.end()) return INVALID_VALUE;
    if (int code = finish_all()) return code;
    memory_used -= block->second;
    device_memory.erase(block);
    std::free(reinterpret_cast<void *>(address));
    return SUCCESS;
}

int cuMemHostAlloc(void **address, size_t bytes, unsigned flags) {
    ENTER(true);
    if (!bytes) return INVALID_VALUE;
    if (bytes > memory_limit - memory_used) return OUT_OF_MEMORY;
    *address = new_memory(bytes, 0xCD);
    if (!*address) return OUT_OF_MEMORY;
    host_memory[reinterpret_cast<uintptr_t>(*address)] = bytes;
    host_flags[reinterpret_cast<uintptr_t>(*address)] = flags;
    return SUCCESS;
}

int cuMemHostGetDevicePointer_v2(uintptr_t *address, void *host, unsigned) {
    ENTER(false);
    *address = reinterpret_cast<uintptr_t>(host);
    return on_device(*address, 1) ? SUCCESS : INVALID_VALUE;
}

int cuMemFreeHost(void *address) {
    ENTER(true);
    auto block = host_memory.find(reinterpret_cast<uintptr_t>(address));
    if (block == host_memory.end()) return INVALID_VALUE;
    if (int code = finish_all()) return code;
    host_flags.erase(block->first);
    host_memory.erase(block);
    std::free(address);
    return SUCCESS;
}

int cuMemcpyHtoD_v2(uintptr_t target, const void *source, size_t bytes) {
    ENTER(true);
    return put_and_finish(to_device(target, source, bytes));
}

int cuMemcpyDtoH_v2(void *target, uintptr_t source, size_t bytes) {
    ENTER(true);
    return put_and_finish(to_host(target, source, bytes));
}

int cuMemcpyHtoDAsync_v2(uintptr_t target, const void *source, size_t bytes, void *stream) {
    ENTER(false);
    if (!on_device(target, bytes)) return INVALID_VALUE;
    if (within(host_memory, reinterpret_cast<uintptr_t>(source), bytes)) return put(stream, to_device(target, source, bytes));
    // memory that is not page-locked is read before the call returns
    auto staged = std::make_shared<std::string>(static_cast<const char *>(source), bytes);
    return put(stream, [=] { return to_device(target, staged->data(), bytes)(); });
}

int cuMemcpyDtoHAsync_v2(void *target, uintptr_t source, size_t bytes, void *stream) {
    ENTER(false);
    if (!on_device(source, bytes)) return INVALID_VALUE;
    return put(stream, to_host(target, source, bytes));
}

int cuMemsetD8Async(uintptr_t target, unsigned char value, size_t bytes, void *stream) {
    ENTER(false);
    if (!on_device(target, bytes)) return INVALID_VALUE;
    return put(stream, to_value(target, value, bytes));
}

int cuStreamCreate(void **stream, unsigned) {
    ENTER(false);
    auto made = new Stream;
    streams.insert(made);
    *stream = made;
    return SUCCESS;
}

int cuStreamDestroy_v2(void *handle) {
    ENTER(false);
    auto stream = static_cast<Stream *>(handle);
    if (!streams.count(stream)) return INVALID_HANDLE;
    int code = finish(stream);
    streams.erase(stream);
    delete stream;
    return code;
}

int cuStreamSynchronize(void *handle) {
    ENTER(true);
    Stream *stream = stream_of(handle);
    return stream ? finish(stream) : INVALID_HANDLE;
}

int cuStreamQuery(void *handle) {
    ENTER(true);
    Stream *stream = stream_of(handle);
    return !stream ? INVALID_HANDLE : stream->queue.empty() ? SUCCESS : NOT_READY;
}

int cuStreamWaitEvent(void *handle, void *event, unsigned) {
    ENTER(false);
    Stream *stream = stream_of(handle);
    if (!stream || !events.count(static_cast<Event *>(event))) return INVALID_HANDLE;
    std::shared_ptr<Mark> mark = static_cast<Event *>(event)->mark;
    if (mark && mark->capture) {
        Capture *capture = mark->capture;
        if (stream->capture && stream->capture != capture) return CAPTURE_ISOLATION;
        if (!stream->capture && !stream->queue.empty()) return CAPTURE_ISOLATION;
        stream->capture = capture;
        capture->put[stream];
        if (stream == capture->origin) capture->joined[mark->stream] = mark->position;
        return SUCCESS;
    }
    if (stream->capture) {
        stream->capture->valid = false;
        return CAPTURE_ISOLATION;
    }
    if (mark) stream->queue.push_back({nullptr, mark});
    return SUCCESS;
}

int cuEventCreate(void **event, unsigned) {
    ENTER(false);
    auto made = new Event;
    events.insert(made);
    *event = made;
    return SUCCESS;
}

int cuEventDestroy_v2(void *handle) {
    ENTER(false);
    auto event = static_cast<Event *>(handle);
    if (!events.erase(event)) return INVALID_HANDLE;
    delete event;
    return SUCCESS;
}

int cuEventRecord(void *handle, void *stream_handle) {
    ENTER(false);
    auto event = static_cast<Event *>(handle);
    Stream *stream = stream_of(stream_handle);
    if (!stream || !events.count(event)) return INVALID_HANDLE;
    if (Capture *capture = stream->capture) {
        event->mark = std::make_shared<Mark>();
        event->mark->stream = stream;
        event->mark->capture = capture;
        event->mark->position = capture->put[stream];
    } else {
        event->mark = put_mark(stream);
    }
    return SUCCESS;
}

int cuEventSynchronize(void *handle) {
    ENTER(true);
    auto event = static_cast<Event *>(handle);
    if (!events.count(event)) return INVALID_HANDLE;
    if (event->mark && event->mark->capture) return CAPTURE_UNSUPPORTED;
    return event->mark ? run_until(event->mark) : int(SUCCESS);
}

int cuEventQuery(void *handle) {
    ENTER(false);
    auto event = static_cast<Event *>(handle);
    if (!events.count(event)) return INVALID_HANDLE;
    return !event->mark || event->mark->done ? SUCCESS : NOT_READY;
}

int cuEventElapsedTime(float *milliseconds, void *first, void *second) {
    ENTER(false);
    auto earlier = static_cast<Event *>(first), later = static_cast<Event *>(second);
    if (!events.count(earlier) || !events.count(later) || !earlier->mark || !later->mark) return INVALID_HANDLE;
    if (!earlier->mark->done || !later->mark->done) return NOT_READY;
    *milliseconds = std::chrono::duration<float, std::milli>(later->mark->passed - earlier->mark->passed).count();
    return SUCCESS;
}

int cuStreamBeginCapture_v2(void *handle, int mode) {
    ENTER(true);
    Stream *stream = stream_of(handle);
    if (!stream) return INVALID_HANDLE;
    if (stream == &default_stream || stream->capture) return CAPTURE_UNSUPPORTED;
    captures.push_back(std::make_unique<Capture>());
    Capture *capture = captures.back().get();
    capture->thread = std::this_thread::get_id();
    capture->of_all_threads = mode == CAPTURE_MODE_GLOBAL;
    capture->origin = stream;
    capture->put[stream];
    stream->capture = capture;
    return SUCCESS;
}

int cuStreamEndCapture(void *handle, void **graph) {
    ENTER(false);
    *graph = nullptr;
    Stream *stream = stream_of(handle);
    if (!stream || !stream->capture || stream->capture->origin != stream) return INVALID_VALUE;
    Capture *capture = stream->capture;
    if (capture->thread != std::this_thread::get_id()) return CAPTURE_WRONG_THREAD;
    int code = capture->valid ? SUCCESS : CAPTURE_INVALIDATED;
    for (auto &[side, put] : capture->put) {
        side->capture = nullptr;
        if (side != stream && capture->joined[side] != put && !code) code = CAPTURE_UNJOINED;
    }
    // events that were recorded in it stay unfit to be waited for
    for (Event *event : events) {
        if (event->mark && event->mark->capture == capture) event->mark = nullptr;
    }
    if (!code) {
        auto recorded = new Graph(std::move(capture->graph));
        graphs.insert(recorded);
        *graph = recorded;
    }
    for (auto kept = captures.begin(); kept != captures.end(); ++kept) {
        if (kept->get() == capture) {
            captures.erase(kept);
            break;
        }
    }
    return code;
}

int cuGraphInstantiateWithFlags(void **ready, void *graph, unsigned long long) {
    ENTER(false);
    auto recorded = static_cast<Graph *>(graph);
    if (!graphs.count(recorded)) return INVALID_VALUE;
    auto made = new Graph(*recorded);
    ready_graphs.insert(made);
    *ready = made;
    return SUCCESS;
}

int cuGraphLaunch(void *ready, void *handle) {
    ENTER(false);
    auto graph = static_cast<Graph *>(ready);
    if (!ready_graphs.count(graph)) return INVALID_VALUE;
    for (const Operation &operation : graph->operations) {
        if (int code = put(handle, operation.work)) return code;
    }
    return SUCCESS;
}

int cuGraphExecDestroy(void *ready) {
    ENTER(false);
    auto graph = static_cast<Graph *>(ready);
    if (!ready_graphs.erase(graph)) return INVALID_VALUE;
    delete graph;
    return SUCCESS;
}

int cuGraphDestroy(void *handle) {
    ENTER(false);
    auto graph = static_cast<Graph *>(handle);
    if (!graphs.erase(graph)) return INVALID_VALUE;
    delete graph;
    return SUCCESS;
}

int cuModuleLoadData(void **module, const void *image) {
    ENTER(true);
    return load(module, image);
}

int cuModuleUnload(void *handle) {
    ENTER(true);
    auto module = static_cast<Module *>(handle);
    if (!modules.erase(module)) return INVALID_HANDLE;
    int code = finish_all();
    dlclose(module->library);
    delete module;
    return code;
}

int cuModuleGetFunction(void **function, void *module, const char *name) {
    ENTER(false);
    if (!modules.count(static_cast<Module *>(module))) return INVALID_HANDLE;
    *function = dlsym(static_cast<Module *>(module)->library, (std::string("host_") + name).c_str());
    return *function ? SUCCESS : NOT_FOUND;
}

int cuLaunchKernel(
    void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, void *stream,
    void **parameters, void **extra) {
    ENTER(false);
    if (extra || shared) return NOT_SUPPORTED;
    if (!gx || !gy || !gz || !bx || !by || !bz || gy > 65535 || gz > 65535 || bz > 64) return INVALID_VALUE;
    if (size_t(bx) * by * bz > 1024) return INVALID_VALUE;
    auto values = std::make_shared<std::vector<char>>();
    size_t count = 0;
    for (; parameters[count]; ++count) {
        auto value = static_cast<const char *>(parameters[count]);
        values->insert(values->end(), value, value + SLOT);
    }
    auto kernel = reinterpret_cast<HostKernel>(function);
    return put(stream, [=] {
        std::vector<void *> places(count);
        for (size_t place = 0; place < count; ++place) places[place] = values->data() + place * SLOT;
        kernel(gx, gy, gz, bx, by, bz, places.data());
        return int(SUCCESS);
    });
}

// What pycuda asks for when it is imported, and nobody here calls.
#define UNSUPPORTED(NAME) \
    int NAME() { return NOT_SUPPORTED; }
UNSUPPORTED(cuArray3DCreate_v2) UNSUPPORTED(cuArray3DGetDescriptor_v2) UNSUPPORTED(cuArrayCreate_v2)
UNSUPPORTED(cuArrayDestroy) UNSUPPORTED(cuArrayGetDescriptor_v2) UNSUPPORTED(cuCtxAttach) UNSUPPORTED(cuCtxCreate_v2)
UNSUPPORTED(cuCtxDetach) UNSUPPORTED(cuCtxDisablePeerAccess) UNSUPPORTED(cuCtxEnablePeerAccess)
UNSUPPORTED(cuCtxGetApiVersion) UNSUPPORTED(cuCtxGetCacheConfig) UNSUPPORTED(cuCtxGetLimit)
UNSUPPORTED(cuCtxGetSharedMemConfig) UNSUPPORTED(cuCtxSetCacheConfig) UNSUPPORTED(cuCtxSetLimit)
UNSUPPORTED(cuCtxSetSharedMemConfig) UNSUPPORTED(cuDeviceCanAccessPeer) UNSUPPORTED(cuDeviceGetByPCIBusId)
UNSUPPORTED(cuDeviceGetPCIBusId) UNSUPPORTED(cuFuncGetAttribute) UNSUPPORTED(cuFuncSetAttribute)
UNSUPPORTED(cuFuncSetBlockShape) UNSUPPORTED(cuFuncSetCacheConfig) UNSUPPORTED(cuFuncSetSharedSize)
UNSUPPORTED(cuIpcCloseMemHandle) UNSUPPORTED(cuIpcGetEventHandle) UNSUPPORTED(cuIpcGetMemHandle)
UNSUPPORTED(cuIpcOpenEventHandle) UNSUPPORTED(cuIpcOpenMemHandle_v2) UNSUPPORTED(cuLaunch) UNSUPPORTED(cuLaunchGrid)
UNSUPPORTED(cuLaunchGridAsync) UNSUPPORTED(cuLinkAddData_v2) UNSUPPORTED(cuLinkAddFile_v2) UNSUPPORTED(cuLinkComplete)
UNSUPPORTED(cuLinkCreate_v2) UNSUPPORTED(cuLinkDestroy) UNSUPPORTED(cuMemAllocManaged) UNSUPPORTED(cuMemAllocPitch_v2)
UNSUPPORTED(cuMemGetAddressRange_v2) UNSUPPORTED(cuMemHostGetFlags) UNSUPPORTED(cuMemHostRegister_v2)
UNSUPPORTED(cuMemHostUnregister) UNSUPPORTED(cuMemcpy2DAsync_v2) UNSUPPORTED(cuMemcpy2DUnaligned_v2)
UNSUPPORTED(cuMemcpy2D_v2) UNSUPPORTED(cuMemcpy3DAsync_v2) UNSUPPORTED(cuMemcpy3DPeer) UNSUPPORTED(cuMemcpy3DPeerAsync)
UNSUPPORTED(cuMemcpy3D_v2) UNSUPPORTED(cuMemcpyAtoA_v2) UNSUPPORTED(cuMemcpyAtoD_v2) UNSUPPORTED(cuMemcpyAtoH_v2)
UNSUPPORTED(cuMemcpyDtoA_v2) UNSUPPORTED(cuMemcpyDtoDAsync_v2) UNSUPPORTED(cuMemcpyDtoD_v2) UNSUPPORTED(cuMemcpyHtoA_v2)
UNSUPPORTED(cuMemcpyPeer) UNSUPPORTED(cuMemcpyPeerAsync) UNSUPPORTED(cuMemsetD16Async) UNSUPPORTED(cuMemsetD16_v2)
UNSUPPORTED(cuMemsetD2D16Async) UNSUPPORTED(cuMemsetD2D16_v2) UNSUPPORTED(cuMemsetD2D32Async) UNSUPPORTED(cuMemsetD2D32_v2)
UNSUPPORTED(cuMemsetD2D8Async) UNSUPPORTED(cuMemsetD2D8_v2) UNSUPPORTED(cuMemsetD32Async) UNSUPPORTED(cuMemsetD32_v2)
UNSUPPORTED(cuMemsetD8_v2) UNSUPPORTED(cuModuleGetGlobal_v2) UNSUPPORTED(cuModuleGetSurfRef) UNSUPPORTED(cuModuleGetTexRef)
UNSUPPORTED(cuModuleLoad) UNSUPPORTED(cuModuleLoadDataEx) UNSUPPORTED(cuParamSetSize) UNSUPPORTED(cuParamSetTexRef)
UNSUPPORTED(cuParamSetf) UNSUPPORTED(cuParamSeti) UNSUPPORTED(cuParamSetv) UNSUPPORTED(cuProfilerInitialize)
UNSUPPORTED(cuProfilerStart) UNSUPPORTED(cuProfilerStop) UNSUPPORTED(cuStreamAttachMemAsync) UNSUPPORTED(cuSurfRefGetArray)
UNSUPPORTED(cuSurfRefSetArray) UNSUPPORTED(cuTexRefCreate) UNSUPPORTED(cuTexRefDestroy) UNSUPPORTED(cuTexRefGetAddressMode)
UNSUPPORTED(cuTexRefGetAddress_v2) UNSUPPORTED(cuTexRefGetArray) UNSUPPORTED(cuTexRefGetFilterMode)
UNSUPPORTED(cuTexRefGetFlags) UNSUPPORTED(cuTexRefGetFormat) UNSUPPORTED(cuTexRefSetAddress2D_v3)
UNSUPPORTED(cuTexRefSetAddressMode) UNSUPPORTED(cuTexRefSetAddress_v2) UNSUPPORTED(cuTexRefSetArray)
UNSUPPORTED(cuTexRefSetFilterMode) UNSUPPORTED(cuTexRefSetFlags) UNSUPPORTED(cuTexRefSetFormat)
}
