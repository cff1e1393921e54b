-- New tokens. Each new text of the annotation rotates once; opentunnel.dev/rotate-client-mode, if it is there, names the side.
local os = require("os")
if obj.metadata.annotations == nil then
  obj.metadata.annotations = {}
end
obj.metadata.annotations["opentunnel.dev/rotate-at"] = os.date("!%Y-%m-%dT%XZ")
return obj
