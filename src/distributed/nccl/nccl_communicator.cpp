// Collectives of GPU tensors over NCCL. The library is loaded when a run of several GPUs starts, so
// the program runs where there is none. Calls never block: the host polls the communicator, the
// stream and the channel, so a lost rank is found within the time-out and everything is aborted.
#include <dlfcn.h>
#include <nccl.h>

#include <cstdlib>
#include <cstring>
#include <exception>
#include <future>
#include <thread>

#include "distributed/communicator.h"

namespace kla {
namespace {

// The functions of libnccl that we call.
struct Library {
  decltype(&ncclGetUniqueId) get_unique_id;
  decltype(&ncclCommInitRankConfig) init_rank;
  decltype(&ncclCommGetAsyncError) get_async_error;
  decltype(&ncclCommFinalize) finalize;
  decltype(&ncclCommDestroy) destroy;
  decltype(&ncclCommAbort) abort;
  decltype(&ncclReduceScatter) reduce_scatter;
  decltype(&ncclAllGather) all_gather;
  decltype(&ncclBroadcast) broadcast;
  decltype(&ncclGetErrorString) error_string;

  Library() {
    handle_ = ::dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    if (!handle_)
      throw Error(Exit::usage, std::string("several GPUs need NCCL: ") + ::dlerror(),
                  "install libnccl2, or add its folder to LD_LIBRARY_PATH");
    load(get_unique_id, "ncclGetUniqueId");
    load(init_rank, "ncclCommInitRankConfig");
    load(get_async_error, "ncclCommGetAsyncError");
    load(finalize, "ncclCommFinalize");
    load(destroy, "ncclCommDestroy");
    load(abort, "ncclCommAbort");
    load(reduce_scatter, "ncclReduceScatter");
    load(all_gather, "ncclAllGather");
    load(broadcast, "ncclBroadcast");
    load(error_string, "ncclGetErrorString");
  }

 private:
  template <class Function>
  void load(Function& function, const char* name) {
    function = reinterpret_cast<Function>(::dlsym(handle_, name));
    if (!function)
      throw Error(Exit::usage, std::string("libnccl.so.2 has no ") + name,
                  "install NCCL 2.18 or newer");
  }
  void* handle_;  // for good: NCCL's threads may outlive us
};

const Library& library() {
  static const Library loaded;
  return loaded;
}

class NcclCommunicator final : public Communicator {
 public:
  NcclCommunicator(Channel& channel, DeviceServices& services)
      : Communicator(channel), services_(services), nccl_(library()) {
    // A ring adds in an order that depends on the number of ranks alone, so runs repeat bit for
    // bit; the other algorithms do not promise that.
    ::setenv("NCCL_ALGO", "Ring", 0);
    ncclUniqueId id{};
    if (root()) check(nccl_.get_unique_id(&id), "ncclGetUniqueId");
    const std::string bytes =
        from_root(std::string(id.internal, sizeof(id.internal)), "the exchange of NCCL's id");
    std::memcpy(id.internal, bytes.data(), sizeof(id.internal));
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    const ncclResult_t result = nccl_.init_rank(&comm_, size(), id, rank(), &config);
    finish(result, "ncclCommInitRankConfig");
  }

  // Finalizing and destroying wait for the other ranks: where an error has ended the work, one of
  // them may be gone or frozen.
  ~NcclCommunicator() override {
    if (!comm_) return;
    if (std::uncaught_exceptions() > exceptions_ || !finalized()) {
      abandon();
    } else {
      nccl_.destroy(comm_);
    }
  }

  void reduce_scatter(View all) override {
    const View mine = part_of(all, rank());
    finish(nccl_.reduce_scatter(all.data, mine.data, static_cast<size_t>(mine.size()),
                                number_type(all.dtype), ncclSum, comm_, stream()),
           "the sum of the gradients");
  }

  void all_gather(View all) override {
    const View mine = part_of(all, rank());
    finish(nccl_.all_gather(mine.data, all.data, static_cast<size_t>(mine.bytes()), ncclUint8,
                            comm_, stream()),
           "the exchange of the weights");
  }

  void broadcast(View all) override {
    finish(nccl_.broadcast(all.data, all.data, static_cast<size_t>(all.bytes()), ncclUint8, 0,
                           comm_, stream()),
           "the broadcast of the weights");
  }

 private:
  cudaStream_t stream() const { return static_cast<cudaStream_t>(services_.stream()); }

  static ncclDataType_t number_type(DType dtype) {
    KLA_CHECK(dtype == DType::f32 || dtype == DType::f64, name_of(dtype));
    return dtype == DType::f32 ? ncclFloat32 : ncclFloat64;
  }

  void check(ncclResult_t result, const char* what) const {
    if (result == ncclSuccess || result == ncclInProgress) return;
    throw Error(Exit::distributed, std::string("NCCL: ") + what + ": " + nccl_.error_string(result),
                "the last checkpoint is intact; NCCL_DEBUG=INFO shows more");
  }

  // Waits until the call is under way and the device has done it. After any error nothing that was
  // enqueued can be trusted, and only an abort frees the stream.
  void finish(ncclResult_t result, const char* what) {
    const auto since = Clock::now();
    try {
      check(result, what);
      for (ncclResult_t state = ncclInProgress;; std::this_thread::yield()) {
        check(nccl_.get_async_error(comm_, &state), what);
        check(state, what);
        if (state == ncclSuccess && services_.idle()) return;
        channel().watch(since, what);
      }
    } catch (...) {
      if (comm_) abandon();
      throw;
    }
  }

  bool finalized() const {
    ncclResult_t state = nccl_.finalize(comm_);
    const auto since = Clock::now();
    while (state == ncclInProgress && Clock::now() - since < std::chrono::seconds(10)) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      nccl_.get_async_error(comm_, &state);
    }
    return state == ncclSuccess;
  }

  // Aborts, without trusting NCCL to come back from it.
  void abandon() {
    std::packaged_task<void()> abort([abort = nccl_.abort, comm = comm_] { abort(comm); });
    std::future<void> done = abort.get_future();
    std::thread(std::move(abort)).detach();
    done.wait_for(std::chrono::seconds(5));
    comm_ = nullptr;
  }

  DeviceServices& services_;
  const Library& nccl_;
  ncclComm_t comm_ = nullptr;
  const int exceptions_ = std::uncaught_exceptions();
};

std::unique_ptr<Communicator> make_nccl_communicator(Channel& channel, DeviceServices& services) {
  return std::make_unique<NcclCommunicator>(channel, services);
}

[[maybe_unused]] const bool registered = register_gpu_communicator(make_nccl_communicator);

}  // namespace
}  // namespace kla
