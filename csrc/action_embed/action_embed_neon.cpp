#include "action_embed/action_embed_silu.h"
#include "common/vec_neon.h"

namespace vlakern {

SiluRow action_embed_neon() { return silu_row<VecNeon>; }

}  // namespace vlakern
