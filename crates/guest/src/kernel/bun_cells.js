export function serve(){}
