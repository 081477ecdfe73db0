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
