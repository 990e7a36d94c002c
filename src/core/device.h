// DeviceServices: what a device offers beside its ops: memory, and copies between it and the host.
// A backend registers its own (kernels/cuda/device.cu); the devices that compute in host memory
// share one. Copies and fills are ordered behind the ops called before them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/context.h"

namespace kla {

// Work that record() has seen, to be done again.
class Recording {
 public:
  virtual ~Recording() = default;
  virtual void replay() = 0;
};

class DeviceServices {
 public:
  virtual ~DeviceServices() = default;

  virtual bool host_memory() const = 0;      // true: the host may use its pointers
  virtual std::string describe() const = 0;  // "NVIDIA H200, 139.8 GiB, compute capability 9.0"
  virtual int64_t free_bytes() const = 0;    // what allocate() may still be asked for
  // Drivers and libraries it uses, "name version", for `kla doctor`.
  virtual std::vector<std::string> libraries() const { return {}; }

  virtual void* allocate(int64_t bytes) = 0;  // 256-byte aligned; null if there is not enough
  virtual void release(void*) noexcept = 0;
  // The host's memory may be reused as soon as upload() returns, and is filled when download()
  // returns.
  virtual void upload(void* device, const void* host, int64_t bytes) = 0;
  virtual void download(void* host, const void* device, int64_t bytes) = 0;
  virtual void copy(void* to, const void* from, int64_t bytes) = 0;  // within the device
  virtual void fill(void* device, uint8_t byte, int64_t bytes) = 0;
  virtual void synchronize() = 0;  // waits for everything asked for; Error if any of it failed
  // For libraries that enqueue work of their own: the queue everything is ordered on (a GPU's
  // stream), and whether all of it is done.
  virtual void* stream() { return nullptr; }
  virtual bool idle() { return true; }

  // Does `work` once and returns what does it again: on a GPU a single launch in place of one per
  // kernel (decoding is bound by launches). `work` calls ops, and nothing that waits for the device
  // or allocates. A replay repeats the very same arguments, so what changes from one to the next
  // lies in device memory and is uploaded before it. `work` may be called twice by record(), of
  // which once counts on the device; it is kept, and what it refers to must outlive the recording.
  virtual std::unique_ptr<Recording> record(std::function<void()> work);

  // Marks every op in a profiler's timeline when it is the context's observer; null if the device
  // has no such profiler.
  virtual OpObserver* tracer() { return nullptr; }
};

// The services of a device. Error{usage} naming what is missing if this build or this machine does
// not have it.
DeviceServices& services_of(Device);
bool available(Device, std::string* why_not = nullptr);

// For backends, before main() runs. `make` is called at the first use and throws Error{usage} if
// the machine lacks the device.
using MakeServices = DeviceServices& (*)();
bool register_services(Device, MakeServices make);

// Which of the machine's devices this process takes: its rank on this node. Counts only before the
// first services_of().
void use_device(int index);
int device_in_use();

// Copies of whole dense views; nothing happens in a dry run.
void upload(const Context&, View to, const void* host);
void download(const Context&, const View& from, void* host);

template <class T>
std::vector<T> downloaded(const Context& context, const View& from) {
  from.as<T>();  // checks the type
  std::vector<T> host(static_cast<size_t>(from.size()));
  download(context, from, host.data());
  return host;
}

// The values of a view of f64, f32 or bf16 as doubles.
std::vector<double> downloaded_as_double(const Context&, const View& from);

// A device view as the host sees it: the view itself where the host can use its memory, otherwise a
// copy that pull() refreshes from the device and push() writes back.
class HostMirror {
 public:
  HostMirror() = default;
  HostMirror(const Context& context, View device);
  View host() const { return host_; }
  void pull();
  void push();

 private:
  const Context* context_ = nullptr;
  View device_, host_;
  std::vector<std::byte> copy_;
};

}  // namespace kla
