// Added to tfjs-node's binding: the JavaScript faces of graph_function.cc. Included before the module's table of exports.

static napi_value AddGraphFunction(napi_env env, napi_callback_info info) {
  size_t argc = 4;
  napi_value args[4];
  napi_value js_this;
  napi_status nstatus = napi_get_cb_info(env, info, &argc, args, &js_this, nullptr);
  ENSURE_NAPI_OK_RETVAL(env, nstatus, nullptr);
  TFJSBackend *const backend = GetTFJSBackend(env);
  if (backend != nullptr) backend->AddGraphFunction(env, args[0], args[1], args[2], args[3]);
  return js_this;
}

static napi_value RemoveGraphFunction(napi_env env, napi_callback_info info) {
  size_t argc = 1;
  napi_value args[1];
  napi_value js_this;
  napi_status nstatus = napi_get_cb_info(env, info, &argc, args, &js_this, nullptr);
  ENSURE_NAPI_OK_RETVAL(env, nstatus, nullptr);
  TFJSBackend *const backend = GetTFJSBackend(env);
  if (backend != nullptr) backend->RemoveGraphFunction(env, args[0]);
  return js_this;
}

// From here on what is freed goes back to the kernel, but for small pieces: the opposite of kKeepsFreedMemory.
static napi_value ReturnFreedMemory(napi_env env, napi_callback_info info) {
  mallopt(M_MMAP_MAX, 1 << 16);
  mallopt(M_MMAP_THRESHOLD, 1 << 20);
  mallopt(M_TRIM_THRESHOLD, 1 << 20);
  return nullptr;
}

// A signal that asks the process to end is answered by JavaScript, which hears of it between two calls alone. Here its seconds begin
// at once, whatever runs; when they are over, so is the process.
static unsigned grace_seconds = 0;
static volatile sig_atomic_t asked_by = 0;
static struct sigaction listened_before[NSIG];

static void OnAlarm(int) {
  static const char kSaid[] = "ended while it computed, before it could save: the same call goes on from its last save, if there is one\n";
  if (write(STDERR_FILENO, kSaid, sizeof(kSaid) - 1) < 0) {
  }
  _exit(128 + asked_by);
}

static void OnSignal(int number, siginfo_t *info, void *context) {
  if (asked_by == 0) {
    asked_by = number;
    alarm(grace_seconds);
  }
  const struct sigaction &before = listened_before[number];
  if (before.sa_flags & SA_SIGINFO) {
    before.sa_sigaction(number, info, context);
  } else if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) {
    before.sa_handler(number);
  }
}

static napi_value EndAfterSignals(napi_env env, napi_callback_info info) {
  size_t argc = 1;
  napi_value args[1];
  napi_value js_this;
  napi_status nstatus = napi_get_cb_info(env, info, &argc, args, &js_this, nullptr);
  ENSURE_NAPI_OK_RETVAL(env, nstatus, nullptr);
  const bool is_first = grace_seconds == 0;
  nstatus = napi_get_value_uint32(env, args[0], &grace_seconds);
  ENSURE_NAPI_OK_RETVAL(env, nstatus, nullptr);
  if (!is_first) return nullptr;
  struct sigaction action = {};
  action.sa_handler = OnAlarm;
  sigaction(SIGALRM, &action, nullptr);
  for (const int number : {SIGINT, SIGTERM, SIGHUP}) {
    struct sigaction own = {};
    own.sa_sigaction = OnSignal;
    own.sa_flags = SA_SIGINFO | SA_RESTART;
    sigfillset(&own.sa_mask);
    sigdelset(&own.sa_mask, SIGALRM);
    sigaction(number, &own, &listened_before[number]);
  }
  return nullptr;
}
