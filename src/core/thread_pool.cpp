#include "core/thread_pool.h"

#include <sched.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace kla {

struct ThreadPool::Shared {
  std::mutex mutex;
  std::condition_variable wake, done;
  uint64_t round = 0;
  bool quit = false;
  int busy = 0;  // workers that have not yet finished the current round

  void* task = nullptr;
  Erased call = nullptr;
  int64_t tasks = 0;
  std::atomic<int64_t> next{0};
  std::exception_ptr error;  // first one, guarded by mutex

  std::vector<std::thread> workers;

  void work(int worker) {
    try {
      for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < tasks;)
        call(task, i, worker);
    } catch (...) {
      next.store(tasks, std::memory_order_relaxed);
      std::lock_guard lock(mutex);
      if (!error) error = std::current_exception();
    }
  }

  void loop(int worker) {
    uint64_t seen = 0;
    std::unique_lock lock(mutex);
    while (true) {
      wake.wait(lock, [&] { return quit || round != seen; });
      if (quit) return;
      seen = round;
      lock.unlock();
      work(worker);
      lock.lock();
      if (--busy == 0) done.notify_one();
    }
  }
};

ThreadPool::ThreadPool(int threads)
    : shared_(std::make_unique<Shared>()), threads_(threads > 0 ? threads : available_cores()) {
  // Workers inherit a mask without signals: those belong to the thread that has a stack for them.
  sigset_t all, before;
  sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  for (int w = 1; w < threads_; ++w) shared_->workers.emplace_back([this, w] { shared_->loop(w); });
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard lock(shared_->mutex);
    shared_->quit = true;
  }
  shared_->wake.notify_all();
  for (std::thread& t : shared_->workers) t.join();
}

void ThreadPool::run_erased(int64_t tasks, void* task, Erased call) {
  if (tasks <= 0) return;
  if (threads_ == 1 || tasks == 1) {
    for (int64_t i = 0; i < tasks; ++i) call(task, i, 0);
    return;
  }
  Shared& s = *shared_;
  {
    std::lock_guard lock(s.mutex);
    s.task = task;
    s.call = call;
    s.tasks = tasks;
    s.next.store(0, std::memory_order_relaxed);
    s.error = nullptr;
    s.busy = threads_ - 1;
    ++s.round;
  }
  s.wake.notify_all();
  s.work(0);
  std::unique_lock lock(s.mutex);
  s.done.wait(lock, [&] { return s.busy == 0; });
  if (s.error) std::rethrow_exception(s.error);
}

int available_cores() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
  return static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
}

}  // namespace kla
