// A little addon: keeps what is written to stderr while TensorFlow's libraries load. They tell of oneDNN before anybody could set a
// level, whatever TF_CPP_MIN_LOG_LEVEL says; who loads them passes on what else was said.

#include <node_api.h>
#include <sys/mman.h>
#include <unistd.h>

#include <string>

namespace {

int own = -1;   // stderr itself, while it is kept
int kept = -1;  // where it goes meanwhile

napi_value Hold(napi_env env, napi_callback_info) {
  kept = memfd_create("stderr", MFD_CLOEXEC);
  own = dup(STDERR_FILENO);
  if (kept >= 0 && own >= 0) dup2(kept, STDERR_FILENO);
  return nullptr;
}

napi_value Release(napi_env env, napi_callback_info) {
  std::string text;
  if (kept >= 0 && own >= 0) {
    dup2(own, STDERR_FILENO);
    lseek(kept, 0, SEEK_SET);
    char buffer[4096];
    for (ssize_t got; (got = read(kept, buffer, sizeof buffer)) > 0;) text.append(buffer, got);
  }
  close(own);
  close(kept);
  napi_value result;
  napi_create_string_utf8(env, text.data(), text.size(), &result);
  return result;
}

napi_value Init(napi_env env, napi_value exports) {
  napi_value function;
  napi_create_function(env, "hold", NAPI_AUTO_LENGTH, Hold, nullptr, &function);
  napi_set_named_property(env, exports, "hold", function);
  napi_create_function(env, "release", NAPI_AUTO_LENGTH, Release, nullptr, &function);
  napi_set_named_property(env, exports, "release", function);
  return exports;
}

}  // namespace

NAPI_MODULE(NODE_GYP_MODULE_NAME, Init)
