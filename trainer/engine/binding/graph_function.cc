// Added to tfjs-node's binding: a traced computation, written as a GraphDef, becomes a function that executeOp can call by
// name. Included at the end of tfjs_backend.cc.

#include <malloc.h>

namespace {

// A training step takes and frees hundreds of megabytes in the same pieces each time. glibc would give them back to the kernel
// and have it clear them again: a fifth of the processor's time, and more of the clock's.
const bool kKeepsFreedMemory = [] {
  return mallopt(M_MMAP_MAX, 0) == 1 && mallopt(M_TRIM_THRESHOLD, 0x7fffffff) == 1 &&
         mallopt(M_TOP_PAD, 64 << 20) == 1;
}();

// Finds "node:index" in the graph. Returns false and leaves the name in *unknown when there is no such node.
bool FindOutputs(TF_Graph *graph, const std::string &comma_separated, std::vector<TF_Output> *found,
                 std::string *unknown) {
  size_t from = 0;
  while (from < comma_separated.size()) {
    size_t to = comma_separated.find(',', from);
    if (to == std::string::npos) to = comma_separated.size();
    const std::string reference = comma_separated.substr(from, to - from);
    const size_t colon = reference.rfind(':');
    TF_Operation *node = TF_GraphOperationByName(graph, reference.substr(0, colon).c_str());
    if (node == nullptr) {
      *unknown = reference;
      return false;
    }
    found->push_back({node, std::stoi(reference.substr(colon + 1))});
    from = to + 1;
  }
  return true;
}

}  // namespace

void TFJSBackend::AddGraphFunction(napi_env env, napi_value name_value, napi_value graph_def_value,
                                   napi_value inputs_value, napi_value outputs_value) {
  std::string name, inputs, outputs;
  napi_status nstatus = GetStringParam(env, name_value, name);
  ENSURE_NAPI_OK(env, nstatus);
  nstatus = GetStringParam(env, inputs_value, inputs);
  ENSURE_NAPI_OK(env, nstatus);
  nstatus = GetStringParam(env, outputs_value, outputs);
  ENSURE_NAPI_OK(env, nstatus);
  napi_typedarray_type array_type;
  size_t length;
  void *bytes;
  nstatus = napi_get_typedarray_info(env, graph_def_value, &array_type, &length, &bytes, nullptr, nullptr);
  ENSURE_NAPI_OK(env, nstatus);

  TF_AutoStatus tf_status;
  TF_Graph *graph = TF_NewGraph();
  TF_Buffer *graph_def = TF_NewBufferFromString(bytes, length);
  TF_ImportGraphDefOptions *options = TF_NewImportGraphDefOptions();
  TF_GraphImportGraphDef(graph, graph_def, options, tf_status.status);
  TF_DeleteImportGraphDefOptions(options);
  TF_DeleteBuffer(graph_def);

  TF_Function *function = nullptr;
  if (TF_GetCode(tf_status.status) == TF_OK) {
    std::vector<TF_Output> input_nodes, output_nodes;
    std::string unknown;
    if (!FindOutputs(graph, inputs, &input_nodes, &unknown) ||
        !FindOutputs(graph, outputs, &output_nodes, &unknown)) {
      TF_DeleteGraph(graph);
      NAPI_THROW_ERROR(env, "the traced graph has no node %s", unknown.c_str());
      return;
    }
    function = TF_GraphToFunction(graph, name.c_str(), 0, -1, nullptr, input_nodes.size(), input_nodes.data(),
                                  output_nodes.size(), output_nodes.data(), nullptr, nullptr, nullptr,
                                  tf_status.status);
  }
  TF_DeleteGraph(graph);
  if (TF_GetCode(tf_status.status) == TF_OK) TFE_ContextAddFunction(tfe_context_, function, tf_status.status);
  if (function != nullptr) TF_DeleteFunction(function);
  ENSURE_TF_OK(env, tf_status);
}

void TFJSBackend::RemoveGraphFunction(napi_env env, napi_value name_value) {
  std::string name;
  napi_status nstatus = GetStringParam(env, name_value, name);
  ENSURE_NAPI_OK(env, nstatus);
  TF_AutoStatus tf_status;
  TFE_ContextRemoveFunction(tfe_context_, name.c_str(), tf_status.status);
  ENSURE_TF_OK(env, tf_status);
}
