// A small pool of std::threads. Work is cut into tasks whose shape never depends on the number of
// threads, so one thread and many give the same bits.
#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>

namespace kla {

class ThreadPool {
 public:
  explicit ThreadPool(int threads);  // 0: one per available core
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return threads_; }

  // Calls task(index, worker) for index = 0 .. tasks-1, each once, in any order; worker is in
  // [0, threads()) and names the scratch memory the task may use. Returns when all are done. The
  // first exception of a task is thrown here. Not to be called from inside a task.
  template <class Task>
  void run(int64_t tasks, Task&& task) {
    using Plain = std::remove_reference_t<Task>;
    run_erased(tasks, const_cast<void*>(static_cast<const void*>(&task)),
               [](void* f, int64_t i, int worker) { (*static_cast<Plain*>(f))(i, worker); });
  }

 private:
  using Erased = void (*)(void*, int64_t, int);
  void run_erased(int64_t tasks, void* task, Erased call);

  struct Shared;
  std::unique_ptr<Shared> shared_;
  int threads_;
};

// Cores this process may run on (its affinity mask).
int available_cores();

}  // namespace kla
