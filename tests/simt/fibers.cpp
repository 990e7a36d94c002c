#include "tests/simt/fibers.h"

#include <bit>
#include <boost/context/detail/fcontext.hpp>
#include <cstring>
#include <exception>
#include <utility>

#include "core/error.h"
#include "tests/simt/shared_arrays.h"
#include "tests/simt/stack_pool.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

constinit thread_local uint3 threadIdx{}, blockIdx{};
constinit thread_local dim3 blockDim{}, gridDim{};

namespace kla::fibers {

constinit thread_local Thread* current = nullptr;

namespace {

using boost::context::detail::jump_fcontext;
using boost::context::detail::make_fcontext;
using boost::context::detail::transfer_t;

bool same_place(const Site& a, const Site& b) {
  if (a.place.line() != b.place.line() || a.place.column() != b.place.column()) return false;
  const char *file = a.place.file_name(), *other = b.place.file_name();
  return file == other || std::strcmp(file, other) == 0;
}

std::string text(const uint3& i) {
  return "(" + std::to_string(i.x) + "," + std::to_string(i.y) + "," + std::to_string(i.z) + ")";
}

// AddressSanitizer has to be told which stack runs.
struct HostStack {
  void* fake_stack = nullptr;
  const void* bottom = nullptr;
  size_t size = 0;
};

class Block {
 public:
  void run(const Kernel&, const Grid&, int64_t number);
  void suspend();  // the running thread
  int barrier(bool predicate, const Site&);
  void make_ready(Warp& warp, uint32_t lanes) { warp.ready |= lanes; }
  bool shuffled() const { return seed_ != 0; }
  SharedArrays& shared() { return shared_; }

 private:
  static void enter(transfer_t from);
  void prepare(const Grid&, int64_t number);
  void resume(Warp& warp, int lane);
  bool run_round_robin();
  bool run_shuffled();
  uint64_t draw();
  [[noreturn]] void report_deadlock() const;
  void abandon();

  const Kernel* kernel_ = nullptr;
  StackPool stacks_;
  SharedArrays shared_;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  unsigned count_ = 0, left_ = 0;  // threads of this block, and those that have not returned
  void* scheduler_ = nullptr;      // where run() goes on
  HostStack host_;
  std::exception_ptr error_;
  uint64_t seed_ = 0, random_ = 0;

  unsigned at_barrier_ = 0;
  int predicates_ = 0, barrier_result_ = 0;
  Site barrier_site_;
};

Block& block() {
  thread_local Block instance;
  return instance;
}

void Block::run(const Kernel& kernel, const Grid& grid, int64_t number) {
  kernel_ = &kernel;
  prepare(grid, number);
  try {
    while (left_ > 0)
      if (!(shuffled() ? run_shuffled() : run_round_robin())) report_deadlock();
    shared_.check_red_zones();
  } catch (...) {
    abandon();
    throw;
  }
}

void Block::prepare(const Grid& grid, int64_t number) {
  const auto x = static_cast<unsigned>(number % grid.blocks.x);
  const auto y = static_cast<unsigned>(number / grid.blocks.x % grid.blocks.y);
  const auto z = static_cast<unsigned>(number / grid.blocks.x / grid.blocks.y);
  blockIdx = {x, y, z};
  gridDim = grid.blocks;
  blockDim = dim3(grid.threads);
  seed_ = grid.seed;
  random_ = seed_ * 0x9E3779B97F4A7C15ull + static_cast<uint64_t>(number);
  shared_.begin(grid.shared_bytes);
  at_barrier_ = 0;
  count_ = left_ = grid.threads;
  stacks_.reserve(count_);
  const size_t warps = (count_ + Warp::kLanes - 1) / Warp::kLanes;
  if (warps_.size() < warps) warps_.resize(warps);
  if (threads_.size() < count_) threads_.resize(count_);
  for (size_t w = 0; w < warps; ++w) {
    warps_[w].exists = warps_[w].ready = warps_[w].returned = 0;
    for (Meeting& meeting : warps_[w].meetings) meeting.arrived = 0;
  }
  for (unsigned i = 0; i < count_; ++i) {
    Thread& t = threads_[i];
    t.warp = &warps_[i / Warp::kLanes];
    t.lane = static_cast<int>(i % Warp::kLanes);
    t.index = {i, 0, 0};
    t.returned = false;
    t.copies.clear();
    t.products.clear();
    t.blocks.clear();
    t.open_group = t.open_products = 0;
    t.context = make_fcontext(stacks_.top(i),
                              static_cast<size_t>(stacks_.top(i) - stacks_.bottom(i)), enter);
    t.warp->exists |= 1u << t.lane;
    t.warp->ready |= 1u << t.lane;
  }
}

void Block::enter(transfer_t from) {
  Block& self = *static_cast<Block*>(from.data);
  self.scheduler_ = from.fctx;
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(nullptr, &self.host_.bottom, &self.host_.size);
#endif
  try {
    (*self.kernel_)();
  } catch (...) {
    self.error_ = std::current_exception();
  }
  current->returned = true;
  current->warp->returned |= 1u << current->lane;
  --self.left_;
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(nullptr, self.host_.bottom, self.host_.size);
#endif
  jump_fcontext(self.scheduler_, nullptr);
}

void Block::suspend() {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(&current->fake_stack, host_.bottom, host_.size);
#endif
  const transfer_t from = jump_fcontext(scheduler_, nullptr);
  scheduler_ = from.fctx;
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(current->fake_stack, &host_.bottom, &host_.size);
#endif
}

void Block::resume(Warp& warp, int lane) {
  warp.ready &= ~(1u << lane);
  const auto i =
      static_cast<size_t>(&warp - warps_.data()) * Warp::kLanes + static_cast<size_t>(lane);
  Thread& t = threads_[i];
  current = &t;
  threadIdx = t.index;
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(&host_.fake_stack, stacks_.bottom(i), StackPool::size());
#endif
  t.context = jump_fcontext(t.context, this).fctx;
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(host_.fake_stack, nullptr, nullptr);
#endif
  current = nullptr;
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

bool Block::run_round_robin() {
  bool ran = false;
  for (unsigned first = 0; first < count_; first += Warp::kLanes) {
    Warp& warp = warps_[first / Warp::kLanes];
    for (; warp.ready; ran = true) resume(warp, std::countr_zero(warp.ready));
  }
  return ran;
}

bool Block::run_shuffled() {
  const unsigned warps = (count_ + Warp::kLanes - 1) / Warp::kLanes;
  const uint64_t random = draw();
  const auto first_warp = static_cast<unsigned>((random >> 32) * warps >> 32);
  const int first_lane = static_cast<int>(random % Warp::kLanes);
  for (unsigned i = 0; i < warps; ++i) {
    Warp& warp = warps_[first_warp + i < warps ? first_warp + i : first_warp + i - warps];
    if (!warp.ready) continue;
    const int distance = std::countr_zero(std::rotr(warp.ready, first_lane));
    resume(warp, (first_lane + distance) % Warp::kLanes);
    return true;
  }
  return false;
}

// SplitMix64.
uint64_t Block::draw() {
  uint64_t z = random_ += 0x9E3779B97F4A7C15ull;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

int Block::barrier(bool predicate, const Site& site) {
  if (at_barrier_ == 0) {
    barrier_site_ = site;
    predicates_ = 0;
  } else if (!same_place(site, barrier_site_)) {
    fail(site, "other threads of the block are at another barrier, " + describe(barrier_site_),
         "every thread of a block must reach the same barriers");
  }
  predicates_ += predicate;
  if (++at_barrier_ < count_) {
    wait(site);
    return barrier_result_;
  }
  at_barrier_ = 0;
  barrier_result_ = predicates_;
  shared_.check_red_zones();
  for (unsigned i = 0; i < count_; i += Warp::kLanes) {
    Warp& warp = warps_[i / Warp::kLanes];
    warp.ready = warp.exists;
  }
  if (shuffled()) {
    wait(site);
  } else {
    current->warp->ready &= ~(1u << current->lane);
  }
  return barrier_result_;
}

void Block::report_deadlock() const {
  struct Group {
    const Thread* first;
    int size;
  };
  std::vector<Group> groups;
  for (unsigned i = 0; i < count_; ++i) {
    const Thread& t = threads_[i];
    size_t g = 0;
    while (g < groups.size() &&
           !(groups[g].first->returned == t.returned &&
             (t.returned || same_place(groups[g].first->waits_at, t.waits_at))))
      ++g;
    if (g == groups.size()) groups.push_back({&t, 0});
    ++groups[g].size;
  }
  std::string message = "simt: block " + text(blockIdx) + " waits for ever:";
  for (const Group& group : groups)
    message += (&group == groups.data() ? " " : "; ") + std::to_string(group.size) +
               (group.first->returned ? " threads have returned"
                                      : " threads wait at " + describe(group.first->waits_at)) +
               ", the first is " + text(group.first->index);
  throw Error(Exit::internal, message,
              "a barrier must be reached by every thread of the block, a warp operation by every "
              "lane of its mask");
}

// Leaves the threads that have not returned where they are; kernels own nothing.
void Block::abandon() {
  current = nullptr;
  error_ = nullptr;
#ifdef __SANITIZE_ADDRESS__
  for (unsigned i = 0; i < count_; ++i)
    if (!threads_[i].returned) ASAN_UNPOISON_MEMORY_REGION(stacks_.bottom(i), StackPool::size());
#endif
}

}  // namespace

std::string describe(const Site& site) {
  const std::string file = site.place.file_name();
  return std::string(site.what) + " (" + file.substr(file.rfind('/') + 1) + ":" +
         std::to_string(site.place.line()) + " in " + site.place.function_name() + ")";
}

void fail(const Site& site, const std::string& message, const std::string& remedy) {
  std::string where = "simt: ";
  if (current) where += "block " + text(blockIdx) + ", thread " + text(current->index) + ", ";
  throw Error(Exit::internal, where + describe(site) + ": " + message, remedy);
}

Thread& running(const Site& site) {
  if (!current) fail(site, "called outside of a kernel");
  return *current;
}

bool arrive(uint32_t mask, const Site& site) {
  Thread& t = running(site);
  Warp& warp = *t.warp;
  if (!(mask >> t.lane & 1)) fail(site, "the mask does not hold the calling lane");
  if (mask & ~warp.exists) fail(site, "the mask names lanes that the block does not have");
  Meeting& meeting = warp.meetings[std::countr_zero(mask)];
  if (meeting.arrived == 0) {
    meeting.mask = mask;
    meeting.site = site;
  } else if (meeting.mask != mask || !same_place(meeting.site, site)) {
    fail(site, "other lanes of the warp are at " + describe(meeting.site),
         "the lanes of a mask must meet in the same operation");
  }
  meeting.arrived |= 1u << t.lane;
  return meeting.arrived == mask;
}

void release(uint32_t mask, const Site& site) {
  Warp& warp = *current->warp;
  warp.meetings[std::countr_zero(mask)].arrived = 0;
  warp.ready |= mask;
  if (block().shuffled()) {
    wait(site);
  } else {
    warp.ready &= ~(1u << current->lane);
  }
}

void wait(const Site& site) {
  current->waits_at = site;
  block().suspend();
}

void preempt(const Site& site) {
  if (!current || !block().shuffled()) return;
  current->warp->ready |= 1u << current->lane;
  wait(site);
}

int barrier(bool predicate, const Site& site) {
  running(site);
  return block().barrier(predicate, site);
}

void* shared_array(size_t index, size_t bytes, const Site& site) {
  running(site);
  return block().shared().array(index, bytes, site);
}

void check_shared_row(const void* pointer, const Site& site) {
  if (reinterpret_cast<uintptr_t>(pointer) % 16 != 0)
    fail(site, "the address is not a multiple of 16");
  if (!block().shared().holds(pointer, 16))
    fail(site, "the address is outside of the shared arrays");
}

void run_block(const Kernel& kernel, const Grid& grid, int64_t number) {
  block().run(kernel, grid, number);
}

}  // namespace kla::fibers
