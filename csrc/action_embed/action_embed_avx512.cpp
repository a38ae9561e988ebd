#include "action_embed/action_embed_silu.h"
#include "common/vec_avx512.h"

namespace vlakern {

SiluRow action_embed_avx512() { return silu_row<VecAvx512>; }

}  // namespace vlakern
