-- Opens a new tunnel.
obj.spec.suspend = false
return obj
