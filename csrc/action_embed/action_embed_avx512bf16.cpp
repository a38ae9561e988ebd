#include "action_embed/action_embed_silu.h"
#include "common/vec_avx512bf16.h"

namespace vlakern {

SiluRow action_embed_avx512bf16() { return silu_row<VecAvx512Bf16>; }

}  // namespace vlakern
