#include "action_embed/action_embed_silu.h"
#include "common/vec_avx2.h"

namespace vlakern {

SiluRow action_embed_avx2() { return silu_row<VecAvx2>; }

}  // namespace vlakern
