"""Makes ComfyUI nodes of functions."""

import inspect

NODES = {}


def node(name, outputs, /, **types):
    """Registers a function as a node; `outputs` is one type or a tuple, parameters with a default are optional."""

    def register(function):
        parameters, inputs = inspect.signature(function).parameters, {"required": {}, "optional": {}}
        for key, kind in types.items():
            is_required = parameters[key].default is inspect.Parameter.empty
            inputs["required" if is_required else "optional"][key] = (kind, {})

        class Node:
            RETURN_TYPES = (outputs,) if isinstance(outputs, str) else outputs
            FUNCTION, CATEGORY = "run", "tiny"

            @classmethod
            def INPUT_TYPES(cls):
                return inputs

            def run(self, **values):
                result = function(**values)
                return (result,) if isinstance(outputs, str) else result

        NODES[name] = Node
        return function

    return register
