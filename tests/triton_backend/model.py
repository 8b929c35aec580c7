"""ONNX Runtime for a Triton that came without: a Python-based backend, which takes the repository's models as they are."""

import json
import os

import onnxruntime
import triton_python_backend_utils as triton


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(auto_complete_model_config):
        return auto_complete_model_config

    def initialize(self, args):
        config = json.loads(args["model_config"])
        self._input, self._output = config["input"][0]["name"], config["output"][0]["name"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        path = os.path.join(args["model_repository"], args["model_version"], "model.onnx")
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def execute(self, requests):
        responses = []
        for request in requests:
            image = triton.get_input_tensor_by_name(request, self._input).as_numpy()
            scores = self._session.run([self._output], {self._input: image})[0]
            responses.append(triton.InferenceResponse([triton.Tensor(self._output, scores)]))
        return responses
