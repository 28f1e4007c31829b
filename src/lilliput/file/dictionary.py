"""The preset dictionary of the manifest's compression: strings that most manifests hold, the commonest last.

It is part of format version 1: changing a byte of it makes every file unreadable. `docs/file-format.md` prints it.
"""

from typing import Final

# Operators and their usual arguments, names of layers, recipes and facts, then what nearly every manifest holds.
_LINES: Final = (
    'tanh"]sigmoid"]gelu"]silu"]hardtanh"]hardswish"]hardsigmoid"]leaky_relu"]elu"]exp"]sqrt"]rsqrt"]neg"]clamp"]pow.',
    'Tensor_Scalar"]sub.Tensor"]div.Tensor"]bmm"]matmul"]addmm"]baddbmm"]where.self"]masked_fill.Scalar"]eq.Scalar"]',
    'expand"]unsqueeze"]squeeze.dim"]select.int"]slice.Tensor"]split.Tensor"]chunk"]stack"]unbind.int"]index.Tensor"]',
    'full"]zeros"]ones"]arange"]arange.start"]to.dtype"]type_as"]clone"]contiguous"]detach"]gather"]cumsum"]argmax"]',
    'sum.dim_IntList"]amax"]max.dim"]topk"]einsum"]pad"]constant_pad_nd"]upsample_nearest2d.vec"]upsample_bilinear2d.vec"]',
    'conv1d"]conv3d"]conv_transpose2d.input"]conv2d.padding"]instance_norm"]group_norm"]rms_norm"]lstm.input"]gru.input"]',
    'sym.mul"]sym.add"]sym.floordiv"]item"]sym_size.int"]embedding",["$embeddings.word_embeddings.weight","<0"]]',
    '["scaled_dot_product_attention",["%3","%2","%1"]],["layer_norm",["%1",[384],"$encoder.layer.0.attention.output.',
    'LayerNorm.weight","$encoder.layer.0.attention.output.LayerNorm.bias",1e-12]],["permute",["%1",[0,2,1,3]]],["softmax.',
    'int",["%1",-1]],["transpose.int",["%1",1,2]],["reshape",["%1",["%2",-1]]],["view",["%1",["%2",128,12,32]]],',
    '["avg_pool2d",["%1",[2,2]]],["mean.dim",["%1",[2,3],true]],["adaptive_avg_pool2d",["%1",[1,1]]],["cat",[["%1","%2"],1]],',
    '["batch_norm",["%1","$bn1.weight","$bn1.bias","$bn1.running_mean","$bn1.running_var",false,0.1,1e-05,true]],',
    '["conv2d",["%1","$layer1.0.conv1.weight","$features.0.0.bias",[2,2],[1,1],[1,1],32]],["conv2d",["%1","$conv1.weight",',
    '["mul.Tensor",["%1","%2"]],["add.Tensor",["%1","%4"]],["relu6",["%1"]],["max_pool2d",["%1",[3,3],[2,2],[1,1]]],',
    '["max_pool2d",["%1",[2,2],[2,2]]],["flatten.using_ints",["%1",1]],["linear",["%1","$classifier.weight","$fc.bias"]],',
    '["relu",["%1"]],["linear",["%1","$1.weight","$1.bias"]],"attention.self.query.key.value.dense.in_proj_weight',
    "out_proj.weight_ih_l0.weight_hh_l0.bias_ih_l0.bias_hh_l0.head.blocks.downsample.norm1.mlp.proj.encoder.decoder.num_",
    'batches_tracked":["I64",[],"=","0000000000000000"],"running_var":["F32",[64],"=","0000803f"],"BOOL",[1,"I32",[1,"I16",[',
    '"running_mean":["F32",[64],"=","00000000"],"copy","csr","csc","relative","huffman","bitpack","F64","F16","BF16",[',
    '"k":["a":{"c":{"f":{"original":,"folded":,"input_shape":"notes":{"graph":"none: "},"error":{"conv1.weight":0.0',
    '"},"r":{"version":1,"rule":[{"match":"*","layers":"vector","linear","conv2d","embedding","attention","recurrent",',
    '"why":"","schedule":{"method":"prune/iterative"}"name":"deep-compression","int8","tiny","steps":[{"method":"',
    'factorize/svd","energy":0.9,"rank":{"method":"quantize/float16","form":"bfloat16"},{"method":"prune/magnitude",',
    '"sparsity":0.9},{"method":"share/kmeans","bits":5,"init":"linear"},{"method":"quantize/uniform","bits":4,"per":"row",',
    '"symmetric":false,"group":64,"cell_mean":true}]}]},"p":{"u":{"v":{"values":["F16",["mask":["BOOL",["zero":["U8",[',
    '"levels":["F32",[15],"raw"]}},".weight":{"m":"factorize/svd","s":[64,64,3,3],"p":{"u":{"m":"quantize/float16","s":[',
    '"g":{"in":[["input_ids","int64",["n","s"]],["attention_mask",["x","float32",["n",3,224,224]]],["input","float32",["n",1,28,28]]]',
    ',"sym":{"n":[1,null],"s":[1,512]},"nodes":[["conv2d",["<0","$0.weight","$0.bias"]],["flatten.using_ints",["<0",1]],',
    ']],"out":"%1","call":[["x","<0"]],"call":[["input","<0"]],"buf":["alias":{"dtype":"float32"}}',
    '{"w":{"0.weight":{"m":"quantize/uniform","s":[32,3,3,3],"x":{"per":"row","group":0},"p":{"codes":["I8",[32,3,3,3],"rans",',
    '],"scale":["F32",[32],"raw"]}},"bias":["F32",[10],"raw"],"conv1.weight":{"m":"prune/sparse","s":[100,300],"p":{"values":{',
    '"m":"share/kmeans","s":[300,784],"x":{"zero":true},"p":{"codes":["U8",[300,784],"rans",1],"codebook":["F32",[32],"raw"]}}}},',
    '".bias":["F32",[64],"raw"],"',
)

DICTIONARY: Final = "".join(_LINES).encode("ascii")
