-- Closes the tunnel.
obj.spec.suspend = true
return obj
