// Messages between ranks over MPI: non-blocking sends and receives that are polled, so that a
// frozen rank never holds the others. The only file that includes mpi.h; one thread calls it.
#include <mpi.h>

#include <algorithm>
#include <thread>

#include "distributed/channel.h"

namespace kla {
namespace {

constexpr int64_t kLargestPart = int64_t{1} << 30;  // bytes; MPI counts in int

void check(int result, const char* call) {
  if (result == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = {};
  int length = 0;
  MPI_Error_string(result, text, &length);
  throw Error(Exit::distributed, std::string(call) + ": " + text,
              "the last checkpoint is intact: look at the network, then start again");
}

class MpiChannel final : public Channel {
 public:
  MpiChannel(int rank, int size) : Channel(rank, size) {
    check(MPI_Comm_dup(MPI_COMM_WORLD, &data_), "MPI_Comm_dup");
    check(MPI_Comm_dup(MPI_COMM_WORLD, &signals_), "MPI_Comm_dup");
    MPI_Comm_set_errhandler(data_, MPI_ERRORS_RETURN);
    MPI_Comm_set_errhandler(signals_, MPI_ERRORS_RETURN);
  }
  ~MpiChannel() override { MPI_Finalize(); }

  void abort(Exit code, bool speaker) override {
    if (!speaker) std::this_thread::sleep_for(std::chrono::seconds(5));
    MPI_Abort(MPI_COMM_WORLD, static_cast<int>(code));
  }

 protected:
  void start(const std::vector<Send>& sends, const std::vector<Receive>& receives) override {
    requests_.clear();
    idle_ = 0;
    for (const Receive& r : receives)
      for_each_part(r.bytes, [&](int64_t first, int bytes) {
        check(MPI_Irecv(static_cast<char*>(r.data) + first, bytes, MPI_BYTE, r.from, 0, data_,
                        &requests_.emplace_back()),
              "MPI_Irecv");
      });
    for (const Send& s : sends)
      for_each_part(s.bytes, [&](int64_t first, int bytes) {
        check(MPI_Isend(static_cast<const char*>(s.data) + first, bytes, MPI_BYTE, s.to, 0, data_,
                        &requests_.emplace_back()),
              "MPI_Isend");
      });
  }

  bool advance() override {
    int done = 0;
    check(MPI_Testall(static_cast<int>(requests_.size()), requests_.data(), &done,
                      MPI_STATUSES_IGNORE),
          "MPI_Testall");
    return done != 0;
  }

  void drop() noexcept override {
    for (MPI_Request& request : requests_) {
      if (request == MPI_REQUEST_NULL) continue;
      MPI_Cancel(&request);
      MPI_Request_free(&request);
    }
    requests_.clear();
  }

  // The first rounds only give way: most waits are short.
  void pause() override {
    constexpr int kYields = 200;
    if (++idle_ < kYields) {
      std::this_thread::yield();
    } else {
      std::this_thread::sleep_for(std::chrono::microseconds(std::min(1000, idle_ - kYields + 20)));
    }
  }

  void tell_all(Signal signal) noexcept override {
    for (int peer = 0; peer < size(); ++peer) {
      if (peer == rank()) continue;
      MPI_Request ignored;  // it need not arrive: its receiver may be frozen
      said_ = signal;
      MPI_Isend(&said_, sizeof(said_), MPI_BYTE, peer, 0, signals_, &ignored);
      MPI_Request_free(&ignored);
    }
  }

  Signal hear(int peer) override {
    int there = 0;
    check(MPI_Iprobe(peer, 0, signals_, &there, MPI_STATUS_IGNORE), "MPI_Iprobe");
    if (!there) return kSilent;
    Signal signal = kSilent;
    check(MPI_Recv(&signal, sizeof(signal), MPI_BYTE, peer, 0, signals_, MPI_STATUS_IGNORE),
          "MPI_Recv");
    return signal;
  }

 private:
  template <class Part>
  static void for_each_part(int64_t bytes, Part&& part) {
    for (int64_t first = 0; first < bytes; first += kLargestPart)
      part(first, static_cast<int>(std::min(kLargestPart, bytes - first)));
  }

  MPI_Comm data_ = MPI_COMM_NULL, signals_ = MPI_COMM_NULL;
  std::vector<MPI_Request> requests_;
  Signal said_ = kSilent;
  int idle_ = 0;
};

std::unique_ptr<Channel> open_mpi_channel(const Launch& launch, double) {
  int provided = 0, rank = 0, size = 0;
  MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  if (rank != launch.rank || size != launch.size)
    throw Error(Exit::usage,
                launch.launcher + " started rank " + std::to_string(launch.rank) + " of " +
                    std::to_string(launch.size) + ", but MPI knows rank " + std::to_string(rank) +
                    " of " + std::to_string(size),
                "use the mpirun of the MPI that kla was built with, or 'srun --mpi=pmix'");
  return std::make_unique<MpiChannel>(rank, size);
}

[[maybe_unused]] const bool registered = register_mpi_channel(open_mpi_channel);

}  // namespace
}  // namespace kla
