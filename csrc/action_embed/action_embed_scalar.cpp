#include "action_embed/action_embed_silu.h"
#include "common/vec_scalar.h"

namespace vlakern {

SiluRow action_embed_scalar() { return silu_row<VecScalar>; }

}  // namespace vlakern
