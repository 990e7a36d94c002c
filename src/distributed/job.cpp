#include "distributed/job.h"

#include <exception>
#include <new>

namespace kla {
namespace {

int end_with(Channel& channel, const Error& error, const Report& report) {
  const Channel::Verdict verdict = channel.announce(error);
  int code = static_cast<int>(error.code());
  if (verdict.speaker) {
    const bool common =
        verdict.unanimous || channel.rank() == 0 || error.code() == Exit::distributed;
    code = report(error, common ? "" : channel.name_of_rank(channel.rank()) + ": ");
  }
  if (!verdict.unanimous) channel.abort(error.code(), verdict.speaker);
  return code;
}

}  // namespace

int run_job(Channel& channel, const std::function<int()>& work, const Report& report) {
  if (channel.size() == 1) return work();
  try {
    return work();
  } catch (const Error& error) {
    return end_with(channel, error, report);
  } catch (const std::bad_alloc&) {
    return end_with(channel, Error(Exit::io, "out of memory"), report);
  } catch (const std::exception& e) {
    return end_with(channel, Error(Exit::internal, std::string("internal error: ") + e.what()),
                    report);
  }
}

}  // namespace kla
